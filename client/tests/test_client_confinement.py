"""Tests of a program that gives up its rights: the actions that it can and can't do afterwards.

Each test runs the program in a new process.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netspace_client import ConfinementError, confine
from netspace_client import confinement as module

SOURCE = Path(module.__file__).resolve().parents[1]
BEGIN = """
import errno, os, socket, subprocess, sys, threading
sys.path.insert(0, {source!r})
from netspace_client import ConfinementError, confine

def tried(act, *arguments, **keys):
    try:
        act(*arguments, **keys)
    except OSError as err:
        return errno.errorcode[err.errno]
    return "done"

def told(path):
    with open(path) as stream:
        return stream.read()

def keep(path, mode="w"):
    with open(path, mode) as stream:
        stream.write("x")

def connected(port):
    socket.create_connection(("127.0.0.1", port), 5).close()

def listens(port):
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
"""

# Ways to connect or listen past connect(2) and bind(2); all of them stay on 127.0.0.1.
PAST = """
import ctypes, struct
from socket import AF_INET, AF_INET6, AF_UNIX, MSG_FASTOPEN, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def sent(way, port, kind=SOCK_STREAM, flags=MSG_FASTOPEN):
    with socket.socket(AF_INET, kind) as made:
        if way == "sendto":
            made.sendto(b"x", flags, ("127.0.0.1", port))
        elif way == "sendmsg":
            made.sendmsg([b"x"], [], flags, ("127.0.0.1", port))
        else:
            sent_many(made.fileno(), port, flags)

def sent_many(fd, port, flags):
    name = ctypes.create_string_buffer(struct.pack("=H", AF_INET) + struct.pack("!H4B8x", port, 127, 0, 0, 1))
    text = ctypes.create_string_buffer(b"x")
    piece = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(text), 1))
    head = struct.pack("@PIPNPNi", ctypes.addressof(name), 16, ctypes.addressof(piece), 1, 0, 0, 0)
    number = {"x86_64": 307, "aarch64": 269}[os.uname().machine]
    call(number, fd, ctypes.create_string_buffer(head, 64), 1, flags)

def made(*kind):
    socket.socket(*kind).close()

def listens_anywhere(family):
    with socket.socket(family) as made:
        if family == AF_UNIX:
            made.bind("")
        made.listen()

def ring():
    call(425, 1, ctypes.create_string_buffer(120))

def refused(port):
    for way in ("sendto", "sendmsg", "sendmmsg"):
        assert tried(sent, way, port) == "EACCES", way
        assert tried(sent, way, port, SOCK_DGRAM, 0) == "done", "UDP is not bounded"
    for kind in (
        (AF_INET, SOCK_STREAM, 262),
        (AF_INET6, SOCK_STREAM, 262),
        (AF_INET, SOCK_STREAM, 256),
        (43, SOCK_STREAM, 0),
        (21, SOCK_SEQPACKET, 0),
    ):
        assert tried(made, *kind) == "EACCES", kind
    assert tried(ring) == "ENOSYS"
"""


def supported() -> bool:
    try:
        module._version()
    except ConfinementError:
        return False
    return True


pytestmark = pytest.mark.skipif(not supported(), reason="this kernel has no Landlock that bounds connections")


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """One folder for each right, with that name; the confined program gets the right there. Each folder has a file."""
    found = {name: tmp_path / name for name in ("read", "write", "execute", "none")}
    for path in found.values():
        path.mkdir()
        (path / "file").write_text(path.name)
    (found["execute"] / "program").symlink_to("/bin/true")
    return found


@pytest.fixture
def port() -> Iterator[int]:
    """Yield the port of a listening server."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield int(made.getsockname()[1])


def run(script: str, **names: Any) -> None:
    """Run a script in a new process; fail if it fails."""
    values = "".join(f"{name} = {json.loads(json.dumps(value, default=str))!r}\n" for name, value in names.items())
    whole = BEGIN.format(source=str(SOURCE)) + values + script
    done = subprocess.run([sys.executable, "-I", "-c", whole], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_bounded_to_what_is_named(places: dict[str, Path]) -> None:
    script = """
confine(read=[read], write=[write], mailbox=False)
assert told(read + "/file") == "read" and told(write + "/file") == "write"
assert tried(told, none + "/file") == "EACCES", tried(told, none + "/file")
assert tried(told, "/etc/passwd") == "EACCES" and tried(os.listdir, none) == "EACCES"
assert os.listdir(read) == ["file"]
for change in (keep, os.unlink):
    assert tried(change, read + "/file") == "EACCES", change
assert tried(os.truncate, read + "/file", 0) == "EACCES"
keep(write + "/new"), os.mkdir(write + "/folder"), os.rename(write + "/new", write + "/folder/new")
os.truncate(write + "/file", 0), os.unlink(write + "/file")
assert tried(os.link, read + "/file", write + "/link") in ("EACCES", "EXDEV")
os.symlink(none + "/file", write + "/symlink")
assert tried(told, write + "/symlink") == "EACCES"
"""
    run(script, **places)


def test_programs_are_bounded_and_inherit_the_bounds(places: dict[str, Path]) -> None:
    script = """
confine(execute=["/bin", "/usr/bin", "/lib", "/lib64", "/usr/lib"], write=[write], mailbox=False)
assert subprocess.run(["/bin/cat", none + "/file"], capture_output=True).returncode != 0
assert subprocess.run(["/bin/sh", "-c", "echo x > " + write + "/child"]).returncode == 0
open(write + "/program", "w").write("#!/bin/sh\\n"), os.chmod(write + "/program", 0o700)
assert tried(subprocess.run, [write + "/program"]) == "EACCES", "what it wrote itself"
status = told("/proc/self/status") if tried(told, "/proc/self/status") == "done" else ""
assert status == "", "proc is no exception"
seen = []
thread = threading.Thread(target=lambda: seen.append(tried(told, none + "/file")))
thread.start(), thread.join()
assert seen == ["EACCES"]
"""
    run(script, **places)


def test_nothing_is_started_by_default(places: dict[str, Path]) -> None:
    run('confine(mailbox=False)\nassert tried(subprocess.run, ["/bin/true"]) == "EACCES"', **places)


def test_connections_are_bounded_to_named_ports(places: dict[str, Path], port: int) -> None:
    script = """
with socket.create_server(("127.0.0.1", 0)) as other:
    free = other.getsockname()[1]
    opened = socket.create_connection(("127.0.0.1", free))
    confine(connect=[port], mailbox=False)
    assert tried(connected, port) == "done" and tried(connected, free) == "EACCES"
    assert opened.send(b"x") == 1, "what is open stays open"
assert tried(listens, 0) == "EACCES" and tried(listens, port) == "EACCES"
"""
    run(script, port=port)


def test_ways_past_the_ports_are_refused(port: int) -> None:
    script = """
confine(mailbox=False)
refused(port)
assert tried(listens_anywhere, AF_INET) == tried(listens_anywhere, AF_UNIX) == "EACCES"
made(AF_INET), made(AF_INET6), made(AF_UNIX), socket.socketpair()
"""
    run(PAST + script, port=port)


def test_ways_past_the_ports_stay_refused_to_a_listener(port: int) -> None:
    script = """
confine(connect=[port], listen=[port], mailbox=False)
refused(port)
assert tried(connected, port) == tried(listens_anywhere, AF_UNIX) == "done"
"""
    run(PAST + script, port=port)


def answer(lines: list[tuple[int, int, int, int]], number: int, *arguments: int, machine: int) -> int:
    """Run a filter as the kernel would; return the filter's verdict on a system call."""
    call, at, word = struct.pack("<IIQ6Q", number, machine, 0, *arguments, *[0] * (6 - len(arguments))), 0, 0
    compare = {0x15: int.__eq__, 0x35: int.__ge__, 0x45: int.__and__}
    while True:
        code, true, false, value = lines[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (word,) = struct.unpack_from("<I", call, value)
        else:
            at += true if compare[code](word, value) else false


@pytest.mark.parametrize(
    ("name", "architecture", "socket_", "listen", "sendto", "sendmsg", "sendmmsg"),
    [("x86_64", 0xC000003E, 41, 50, 44, 46, 307), ("aarch64", 0xC00000B7, 198, 201, 206, 211, 269)],
)
def test_filter_refuses_the_same_on_each_machine(
    name: str, architecture: int, socket_: int, listen: int, sendto: int, sendmsg: int, sendmmsg: int
) -> None:
    lines = module._filter(module._MACHINES[name], listen=False)
    allowed, denied = 0x7FFF0000, 0x00050000 | errno.EACCES
    for call, expected in (
        ((sendto, 3, 1, 1, socket.MSG_FASTOPEN | socket.MSG_NOSIGNAL), denied),
        ((sendto, 3, 1, socket.MSG_FASTOPEN, socket.MSG_NOSIGNAL), allowed),
        ((sendmsg, 3, 1, socket.MSG_FASTOPEN), denied),
        ((sendmsg, 3, 1, 0, socket.MSG_FASTOPEN), allowed),
        ((sendmmsg, 3, 1, 1, socket.MSG_FASTOPEN), denied),
        ((sendmmsg, 3, 1, 1, 0), allowed),
        ((socket_, 2, 1, 262), denied),
        ((socket_, 1 << 32 | 10, 1, 1 << 32 | 262), denied),
        ((socket_, 2, 1, 6), allowed),
        ((socket_, 17, 3, 0x300), allowed),
        ((listen, 3), denied),
        ((425, 1), 0x00050000 | errno.ENOSYS),
        ((0x40000000 + 41, 2, 1, 0), 0x00050000 | errno.EPERM),
        ((3, 3), allowed),
    ):
        assert answer(lines, *call, machine=architecture) == expected, call
        assert answer(lines, *call, machine=0x40000003) == 0x00050000 | errno.EPERM, "32-bit call"
    assert answer(module._filter(module._MACHINES[name], listen=True), listen, 3, machine=architecture) == allowed


def test_other_machine_is_refused_and_changes_nothing(places: dict[str, Path]) -> None:
    script = """
from netspace_client import confinement
confinement._MACHINES.clear()
try:
    confine(mailbox=False)
except ConfinementError as err:
    assert "use a 64-bit Python on x86_64 or aarch64" in str(err)
else:
    raise AssertionError
assert told(none + "/file") == "none"
"""
    run(script, **places)


def test_named_port_may_be_listened_on(port: int) -> None:
    run('confine(listen=[port], mailbox=False)\nassert tried(listens, port) in ("done", "EADDRINUSE")', port=port)


def test_mailbox_keeps_its_files_and_broker(tmp_path: Path, port: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    broker = {"host": "127.0.0.1", "port": port, "vhost": "/", "username": "x", "password_file": "/run/netspace/p"}
    card = {"version": 1, "name": "web", "queues": [], "peers": [], "senders": [], "broker": broker}
    (folder / "environment.json").write_text(json.dumps(card))
    script = """
from pathlib import Path
confine(folder=Path(folder))
assert told(folder + "/environment.json") and tried(connected, port) == "done"
assert tried(keep, folder + "/environment.json") == "EACCES"
import asyncio, decimal, sqlite3, ssl
ssl.create_default_context()
"""
    run(script, folder=folder, port=port)


def test_second_call_takes_more_and_gives_nothing(places: dict[str, Path]) -> None:
    script = """
confine(read=[read, write], mailbox=False)
confine(read=[read, none], mailbox=False)
assert told(read + "/file") == "read"
assert tried(told, write + "/file") == tried(told, none + "/file") == "EACCES"
"""
    run(script, **places)


def test_mistake_leaves_all_rights(places: dict[str, Path]) -> None:
    script = """
for wrong in ({"read": [none + "/absent"]}, {"connect": [70000]}, {"mailbox": True}):
    try:
        confine(**{"mailbox": False, **wrong})
    except ConfinementError as err:
        assert str(err)
    else:
        raise AssertionError(wrong)
    assert told(none + "/file") == "none"
"""
    run(script, **places)


def test_process_with_threads_is_refused() -> None:
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    try:
        with pytest.raises(ConfinementError, match="several threads"):
            confine(mailbox=False)
    finally:
        ends.set()
        thread.join()


def test_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(number: int, *arguments: object) -> int:
        raise ConfinementError(os.strerror(38))

    monkeypatch.setattr(module, "_call", missing)
    with pytest.raises(ConfinementError, match="no Landlock, or it is off"):
        confine(mailbox=False)
    monkeypatch.setattr(module, "_call", lambda number, *arguments: 3)
    with pytest.raises(ConfinementError, match=r"Linux 6\.7 or later"):
        confine(mailbox=False)
