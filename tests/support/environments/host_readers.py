"""All readers of data that the host gets from an environment or an image, each with genuine inputs (``reader_fuzz``).

A reader is a function of the library. It gets its input in the same way as on a host: in a file, by a socket, from the
kernel. It returns the texts that an operator would see. These inputs have no reader here:

- frames of AMQP: the broker reads them (``support/links/amqp_fuzz.py``);
- answers of DNS servers and evidence of other hosts: they don't come from an environment, and have separate fuzzers;
- an erofs image: ``fsck.erofs`` and the kernel read it (docs/images.md says which sources to trust);
- numbers of control groups, mounts, sockets: the kernel writes them, and no environment chooses a name in them.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import io
import json
import os
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from netspace.environment import execute, output
from netspace.environment.audit import rivals, twin
from netspace.environment.container import oci_runtime
from netspace.environment.health import probes
from netspace.environment.images import admin, archive, sources, streams, users
from netspace.environment.images.bounds import Budget
from netspace.environment.images.sources import oci
from netspace.environment.images.tree import Tree
from netspace.environment.runtimes import solo5
from netspace.environment.storage import elf, ext4, guest_files, tree_removal
from netspace.host.salt_targets import os_grains
from netspace.link.broker import amqp, management
from netspace.link.mail import dead_letters
from netspace.supervision import process
from netspace.supervision.daemon import log_times, logs
from support.environments import image_files, solo5_kernel

Reader = Callable[[bytes], "Iterable[str] | None"]
_PR_SET_NAME = 15


class Refused(Exception):
    """The reader refused the input, as its documentation says."""


class Place:
    """A folder in memory for readers of files, with other files that these readers need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "file"
        self.log = folder / "log"
        self.layout = folder / "layout"
        self.roots = folder / "roots"
        self.libc = ctypes.CDLL(None)

    def written(self, raw: bytes) -> Path:
        self.file.write_bytes(raw)
        return self.file


# -- output and logs -------------------------------------------------------------------
def _log(place: Place, raw: bytes) -> Iterator[str]:
    """Read a program's output from a log, with the times beside it."""
    place.log.write_bytes(raw)
    log_times.beside(place.log).write_bytes(struct.pack("<QQ", 0, 3) + struct.pack("<QQ", len(raw) // 2, 2**40 + 1))
    lines = output.in_files(place.log, 5, starts=True)
    assert len(lines) <= 5
    yield from output.shown(lines, times=True)
    yield logs.tail(place.log, 0)


def _times(place: Place, raw: bytes) -> Iterator[str]:
    """Read damaged times of a log."""
    place.log.write_bytes(b"line\n" * 20)
    log_times.beside(place.log).write_bytes(raw)
    yield from output.shown(output.in_files(place.log, 50, starts=True), times=True)


def _journal(raw: bytes) -> Iterator[str]:
    """Read a program's output from journalctl.

    journalctl writes output that isn't text as a list of numbers (systemd.journal-fields(7)).
    """
    text = raw.decode(errors="replace")
    message: Any = text if text.encode() == raw and text.isprintable() else list(raw)
    entry = {"__REALTIME_TIMESTAMP": "1790000000000000", "MESSAGE": message, "_PID": "7"}
    stream = io.BytesIO(json.dumps(entry).encode() + b"\n")
    yield from output.shown(output._of_stream(stream, 3)[0], times=True)


def _journalctl(raw: bytes) -> Iterator[str]:
    """Read journalctl's own output after it was damaged."""
    yield from output.shown(output._of_stream(io.BytesIO(raw), 3)[0], times=True)


def _complaint(place: Place, raw: bytes) -> Iterator[str]:
    yield oci_runtime.complaint(place.written(raw))


# -- programs that the host runs inside ------------------------------------------------
def _executed(raw: bytes) -> Iterator[str]:
    told = execute.Done(0, raw, raw[::-1], False, False).shown()
    yield from (told["stdout"], told["stderr"])


def _probed(raw: bytes) -> Iterator[str]:
    passed, text = probes.judged(execute.Done(1, raw, raw[::2], False, False), 1.0)
    assert passed is False and "\n" not in text
    yield text


def _probe_rows(raw: bytes) -> Iterator[str]:
    for row in twin.understood(raw):
        yield from row.values()


def _rival(raw: bytes) -> Iterator[str]:
    there, here = socket.socketpair()
    with there, here:
        there.sendall(raw[:16384] + b"\n")
        there.close()
        answer = rivals.understood(rivals._line(here.fileno()))
        yield answer.ended


# -- letters -----------------------------------------------------------------------------
def _letter(raw: bytes) -> Iterator[str]:
    """Read an answer of the broker's management API that contains a sender's properties, headers and payload."""
    try:
        answer = management.decoded(raw)
    except (ValueError, RecursionError) as err:
        raise Refused from err
    for one in answer if isinstance(answer, list) else []:
        if isinstance(one, dict):
            shown = dead_letters.letter(one).shown(payload=True)
            yield from map(str, shown.values())


def _headers(raw: bytes) -> None:
    properties, headers = amqp.decode(raw)
    held = amqp.Held(1, b"", properties, headers)
    dead_letters.came_by(held.header("x-first-death-exchange"))
    held.text("message_id")
    assert amqp.decode(amqp._encode(properties, headers)) == (properties, headers)


class _Broker:
    """A broker that sends any bytes after a correct log-in."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.says = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        def method(channel: int, which: tuple[int, int], arguments: bytes = b"") -> bytes:
            payload = struct.pack(">HH", *which) + arguments
            return struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"

        opened = struct.pack(">I", 0)
        greeting = method(0, (10, 10)) + method(0, (10, 30), struct.pack(">HIH", 9, 4096, 0)) + method(0, (10, 41))
        greeting += method(1, (20, 11), opened) + method(2, (20, 11), opened) + method(2, (85, 11))
        while True:
            client, _ = self._listener.accept()
            with contextlib.suppress(OSError), client:
                client.sendall(greeting + self.says)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass

    def hears(self, raw: bytes) -> None:
        self.says = raw
        try:
            with amqp.Connection("127.0.0.1", self.port, "v", None, "", None, seconds=10) as connection:
                while (held := connection.hold("dead")) is not None:
                    held.text("message_id")
        except ConnectionError as err:
            raise Refused from err


def _message() -> bytes:
    """Return the broker's answer to basic.get: a message with properties and headers."""
    headers = b"".join(
        bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value
        for name, value in ((b"x-first-death-exchange", b"link.web.orders.k"), (b"note", b"\xc2\x9b2J"))
    )
    properties = struct.pack(">H", 0xA080) + b"\x04text" + struct.pack(">I", len(headers)) + headers + b"\x02id"
    got = struct.pack(">HHQB", 60, 71, 1, 0) + b"\x04link\x00" + struct.pack(">I", 0)
    header = struct.pack(">HHQ", 60, 0, 4) + properties
    frames = ((1, got), (2, header), (3, b"body"), (1, struct.pack(">HH", 60, 72) + b"\0"))
    return b"".join(struct.pack(">BHI", kind, 1, len(one)) + one + b"\xce" for kind, one in frames)


# -- layers, and files of running environments -------------------------------------------
def _layer(place: Place, raw: bytes) -> Iterator[str]:
    """Make a writable layer whose names and file types come from *raw*; walk it, read a file in it, remove it."""
    root = place.roots / "root"
    root.mkdir(parents=True)
    here, depth = os.open(root, os.O_RDONLY), 0
    try:
        for at in range(0, len(raw) - 2, 9):
            kind, name = raw[at] % 8, raw[at + 1 : at + 9].replace(b"/", b"_").replace(b"\0", b"0")
            if name in (b".", b".."):
                continue
            with contextlib.suppress(FileExistsError):
                if kind < 2 and depth < 40:
                    os.mkdir(name, dir_fd=here)
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
                    os.close(here)
                    here, depth = below, depth + 1
                elif kind == 2:
                    os.symlink(raw[: at + 2].replace(b"\0", b"/")[-200:] or b"/", name, dir_fd=here)
                elif kind == 3:
                    os.mkfifo(name, dir_fd=here)
                elif kind == 4:
                    os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=here)
                elif kind == 5:
                    os.mkdir(b"etc", dir_fd=here)
                    os.symlink(b"../" * 9 + name, b"etc/os-release", dir_fd=here)
                else:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=here))
    finally:
        os.close(here)
    seen = 0

    def count(name: str, folder: int) -> None:
        nonlocal seen
        seen += 1

    guest_files.beginning(str(root), "/etc/os-release", 64)
    tree_removal.walk(root, count)
    tree_removal.remove(root)
    assert not root.exists()
    yield from ()


def _names(raw: bytes) -> Iterator[str]:
    yield from os_grains(raw).values()


def _super_block(place: Place, raw: bytes) -> None:
    try:
        assert ext4.size_of(place.written(bytes(1024) + raw)) < 2**80
    except ValueError as err:
        raise Refused(str(err)) from err


def _interpreter(raw: bytes) -> None:
    try:
        elf.interpreter(io.BytesIO(raw))
    except ValueError as err:
        raise Refused(str(err)) from err


# -- the kernel's texts about a program, which chooses its name -----------------------------
def _proc(place: Place, raw: bytes) -> None:
    """Give the process's first thread the name *raw*; all other values in ``/proc`` must read as before."""
    pid = os.getpid()
    stat_before, status_before = process.stat(pid), process.status(pid)
    name = raw[:15].replace(b"\0", b"")
    place.libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)
    try:
        assert stat_before is not None
        assert process.stat(pid) == stat_before and process.alive(pid, stat_before.ticks)
        assert not process.dying(pid) and not process.frozen(pid)
        after = process.status(pid)
    finally:
        place.libc.prctl(_PR_SET_NAME, b"reader_fuzz", 0, 0, 0)
    fixed = ("Pid", "PPid", "NSpid", "Uid", "State", "SigCgt", "SigBlk", "SigIgn", "Threads", "CapEff", "Seccomp")
    assert {key: after.get(key) for key in fixed} == {key: status_before.get(key) for key in fixed}
    assert after.keys() == status_before.keys()


# -- images ------------------------------------------------------------------------------------
def _fitting(raw: bytes) -> bytes:
    """Return a damaged tar with correct checksums, so that the reader doesn't stop at them (pax(1), ustar)."""
    found = bytearray(raw)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar":
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def _archive(place: Place, raw: bytes) -> Iterator[str]:
    budget = Budget("fuzz")
    tree = Tree(budget)
    with place.written(raw).open("rb") as file, streams.reader(sources.whole(file), budget, place.folder) as reader:
        tree.apply(archive.members(reader, budget), layer=True)
        tree.write(lambda _: None)
    yield from tree.notes()


def _layout(place: Place, name: str) -> Reader:
    """Return a reader of an OCI layout in which one file is the input; the digest in the layout is corrected."""
    made = image_files.Layout()
    layer = image_files.tar([image_files.member("etc/passwd", b"web:x:33:33::/:/bin/sh\n")])
    made.tag(made.image([layer], {"Cmd": ["/app"], "User": "web", "Env": ["A=b"]}, pack=bytes), "web")
    manifest = json.loads(made.files[f"blobs/sha256/{made.entries[0]['digest'][7:]}"])

    def read(raw: bytes) -> Iterator[str]:
        digest = image_files.sha256(raw)
        files, entry = dict(made.files), dict(made.entries[0])
        if name == "index":
            files["index.json"] = raw
        else:
            said = {**manifest}
            if name == "config":
                said["config"] = {**manifest["config"], "digest": digest, "size": len(raw)}
            files[f"blobs/sha256/{digest[7:]}"] = raw
            whole = json.dumps(said).encode() if name == "config" else raw
            entry["digest"] = image_files.sha256(whole)
            files[f"blobs/sha256/{entry['digest'][7:]}"] = whole
            files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        folder = place.layout
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        try:
            with mock.patch.object(sources, "pack"):
                found = oci.build(f"{folder}:web", place.folder / "target", place.folder)
        finally:
            shutil.rmtree(folder)
        told = admin.shown(found)
        yield from (*told["entrypoint"], *told["cmd"], *told["env"], *told["notes"], told["working_dir"] or "")

    return read


def _layout_seed(name: str) -> bytes:
    made = image_files.Layout()
    layer = image_files.tar([image_files.member("etc/passwd", b"web:x:33:33::/:/bin/sh\n")])
    made.tag(made.image([layer], {"Cmd": ["/app"], "User": "web", "Env": ["A=b"]}, pack=bytes), "web")
    manifest = made.files[f"blobs/sha256/{made.entries[0]['digest'][7:]}"]
    if name == "index":
        return json.dumps({"schemaVersion": 2, "manifests": made.entries}).encode()
    return (
        manifest if name == "manifest" else made.files[f"blobs/sha256/{json.loads(manifest)['config']['digest'][7:]}"]
    )


def _user(raw: bytes) -> Iterator[str]:
    head, _, table = raw.partition(b"\n")
    uid, gid, note = users.resolve(head.decode(errors="replace"), lambda path, most: table[:most])
    assert 0 <= uid <= 65535 and 0 <= gid <= 65535 and (uid == 0) == (gid == 0)
    yield note


def _manifest(raw: bytes) -> Iterator[str]:
    for kind, name in solo5.manifest(raw, "fuzz"):
        if kind in (solo5_kernel.BLOCK, solo5_kernel.NETWORK):
            yield name


# -- all of them ---------------------------------------------------------------------------------
def _deep(levels: int) -> bytes:
    return b'[{"properties": {"headers": {"a": ' + b"[" * levels + b"]" * levels + b"}}}]"


def targets(folder: Path) -> dict[str, tuple[Reader, list[bytes]]]:
    """Return the readers, each with genuine inputs from which the fuzzer starts.

    :param folder: an empty folder for the readers' files, best in memory.
    """
    place, broker = Place(folder), _Broker()
    text = "line one\nzwei \x1b[2J\x9b31m \u202e\nlast".encode()
    deaths = [{"queue": "mailbox.orders.k", "time": 7, "count": 1}]
    death = {"x-first-death-exchange": "link.web.orders.k", "x-first-death-queue": "mailbox.orders.k",
             "x-first-death-reason": "rejected", "x-death": deaths}  # fmt: skip
    about = {"message_id": "1", "content_type": "text/plain", "headers": death}
    got = [{"payload_bytes": 4, "payload": base64.b64encode(text).decode(), "properties": about, "message_count": 0}]
    entry = {"__REALTIME_TIMESTAMP": "1790000000000000", "MESSAGE": [104, 105], "MESSAGE_ID": "x", "_PID": "1"}
    message = _message()
    properties = message[message.index(b"\xa0\x80\x04text") :].split(b"\xce")[0]
    member, tar = image_files.member, image_files.tar
    files = tar([member("etc/"), member("etc/passwd", b"x" * 600), member("l", linkname="etc/passwd"),
                 image_files.hard("h", "etc/passwd"), member("n" * 150, b"y"), member(".wh.gone")])  # fmt: skip
    block = bytearray(1024)
    struct.pack_into("<II", block, 0x4, 16384, 0)
    struct.pack_into("<I", block, 0x18, 2)
    struct.pack_into("<H", block, 0x38, 0xEF53)
    loader = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
    loader += struct.pack("<IIQQQQQQ", 3, 0, 120, 0, 0, 28, 0, 1) + b"/lib64/ld-linux-x86-64.so.2\0"
    rows = msgspec.json.encode([{"name": "read another's", "group": "files", "outcome": "refused", "detail": ""}])
    kernel = solo5_kernel.elf([(1, b"disk"), (2, b"net")])
    said = b'{"level": "error", "msg": "can\'t find /app"}\n2026-01-31T12:00:00.000000Z: exec /app: no such file'
    return {
        "log": (lambda raw: _log(place, raw), [text, b"x" * 500 + b"\n" * 9]),
        "times of a log": (lambda raw: _times(place, raw), [struct.pack("<6Q", 0, 3, 5, 2**40, 50, 2**41)]),
        "output in the journal": (_journal, [text, b"plain", bytes(range(256))]),
        "journalctl": (_journalctl, [json.dumps(entry).encode() + b"\n" + json.dumps(entry).encode() + b"\n"]),
        "errors of a runtime": (lambda raw: _complaint(place, raw), [said, said[:44] * 3]),
        "output of exec": (_executed, [text, bytes(range(256))]),
        "output of a health check": (_probed, [text, bytes(range(256))]),
        "rows of an audit": (_probe_rows, [rows]),
        "answer of a rival": (_rival, [b'{"taken": 16, "ended": "Resource temporarily unavailable"}']),
        "dead letters": (_letter, [json.dumps(got).encode(), _deep(1500)]),
        "headers of a letter": (_headers, [properties]),
        "letters over AMQP": (broker.hears, [message]),
        "layer": (
            lambda raw: _layer(place, raw),
            [bytes(range(180))[::-1], b"\0dir\xff\xfe\x1b[2\2link\x1b[3xx\5etcetera" * 4],
        ),
        "os-release": (_names, [b'NAME="Debian"\nVERSION_ID=13\nID=debian\n']),
        "ext4": (lambda raw: _super_block(place, raw), [bytes(block)]),
        "program's loader": (_interpreter, [loader]),
        "name of a process": (lambda raw: _proc(place, raw), [b"a) Z 1 1\n(x", b"Uid:\t0\nPid:\t1", "é\x1b)".encode()]),
        "tar": (lambda raw: _archive(place, raw), [files, tar([member("a/b", b"1"), member("c", mtime=1.5)])]),
        "tar whose checksums fit": (
            lambda raw: _archive(place, _fitting(raw)),
            [files, tar([member("a/b", b"1"), member("c", mtime=1.5)])],
        ),
        "index of an image": (_layout(place, "index"), [_layout_seed("index")]),
        "manifest of an image": (_layout(place, "manifest"), [_layout_seed("manifest")]),
        "settings of an image": (_layout(place, "config"), [_layout_seed("config")]),
        "users of an image": (_user, [b"web:staff\nroot:x:0:0\nweb:x:33:34::/:\nstaff:x:7:", b"33\nweb:x:33:0:"]),
        "kernel's manifest": (_manifest, [kernel, loader]),
    }  # fmt: skip
