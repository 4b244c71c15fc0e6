"""Ordinary programs of Debian run under the strict profile; what it refuses, it refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PROGRAMS = ("/usr/bin/python3", "/usr/bin/perl", "/usr/bin/openssl", "/usr/bin/dash")
FOLDERS = ("/usr/lib/python3.*", "/usr/lib/*-linux-gnu/perl-base", "/etc/ssl/openssl.cnf", "/usr/lib/ssl")

# Prints the names of what succeeded, of system calls that are given by number.
REFUSED = """
import ctypes, os, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
calls = {"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "keyctl": (250, 219), "add_key": (248, 217),
 "request_key": (249, 218), "ptrace": (101, 117), "process_vm_readv": (310, 270), "userfaultfd": (323, 282),
 "bpf": (321, 280), "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
 "init_module": (175, 105), "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224),
 "open_tree": (428, 428), "fsopen": (430, 430), "mount_setattr": (442, 442), "pidfd_getfd": (438, 438)}
for name, numbers in calls.items():
    result = libc.syscall(numbers[arm], 0, 0, 0, 0, 0, 0)
    print(name, errno.errorcode.get(ctypes.get_errno()) if result < 0 else "succeeded")
for name, number in {"clone3": 435, "io_uring_setup": 425}.items():
    assert libc.syscall(number, 0, 0) < 0
    print(name, errno.errorcode[ctypes.get_errno()])
import socket
for family in ("AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH"):
    try:
        socket.socket(getattr(socket, family), socket.SOCK_STREAM if family == "AF_VSOCK" else socket.SOCK_RAW)
        print(family, "succeeded")
    except OSError as err:
        print(family, errno.errorcode[err.errno])
for protocol in (132, 136):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == 132 else socket.SOCK_DGRAM, protocol)
        print(protocol, "succeeded")
    except OSError as err:
        print(protocol, errno.errorcode[err.errno])
"""

ORDINARY = """
import asyncio, concurrent.futures, ctypes, mmap, multiprocessing, os, socket, sqlite3, ssl, subprocess, tempfile
import threading, json
assert socket.if_nameindex() == [(1, "lo")]
assert socket.getaddrinfo("127.0.0.1", 80)
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(lambda x: x, range(100))) == 4950
assert subprocess.run(["/usr/bin/dash", "-c", "echo ok"], capture_output=True).stdout == b"ok\\n"
context = multiprocessing.get_context("fork"); process = context.Process(target=lambda: None)
process.start(); process.join(); assert process.exitcode == 0
async def main():
    server = await asyncio.start_unix_server(lambda r, w: w.close(), "/tmp/s")
    await asyncio.open_unix_connection("/tmp/s")
    child = await asyncio.create_subprocess_exec("/usr/bin/dash", "-c", "exit 3")
    assert await child.wait() == 3
asyncio.run(main())
with tempfile.NamedTemporaryFile() as f: f.write(b"x"); f.flush(); mmap.mmap(f.fileno(), 1)
db = sqlite3.connect("/tmp/db"); db.execute("create table t (x)"); db.commit()
os.mkfifo("/tmp/fifo"); ssl.create_default_context(); os.sched_setaffinity(0, os.sched_getaffinity(0))
from multiprocessing import shared_memory
s = shared_memory.SharedMemory(create=True, size=100); s.close(); s.unlink()
print("ordinary")
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with some of this machine's own programs and what they load."""
    root = tmp_path_factory.mktemp("debian")
    root.chmod(0o755)
    paths = [str(Path(program).resolve()) for program in PROGRAMS]
    for pattern in FOLDERS:
        paths += [str(path) for path in sorted(Path("/").glob(pattern[1:]))]
    libraries = [str(path) for path in Path("/").glob("usr/lib/python3.*/lib-dynload/*.so")]
    loaded = subprocess.run(["ldd", *paths[: len(PROGRAMS)], *libraries], capture_output=True, text=True).stdout
    paths += sorted(set(re.findall(r"(/\S+\.so[.\d]*)", loaded)))
    subprocess.run(
        ["tar", "-C", "/", "-chf", root / "t.tar", "--exclude=test", "--exclude=__pycache__", *(p[1:] for p in paths)],
        check=True,
    )
    subprocess.run(["tar", "-C", root, "-xf", root / "t.tar"], check=True)
    (root / "t.tar").unlink()
    (root / "usr/bin/python3").symlink_to(Path(PROGRAMS[0]).resolve().name)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


def test_programs(host, debian):
    host.run("web", image=f"dir:{debian}", limits={"pids": 64})

    def run(*command: str) -> str:
        done = host.operations.exec("web", command)
        assert done["retcode"] == 0, done
        return str(done["stdout"]).strip()

    assert run("/usr/bin/python3", "-c", ORDINARY) == "ordinary"
    assert run("/usr/bin/perl", "-e", "fork // die; wait; print join ',', map { $_ * 2 } 1..3") == "2,4,62,4,6"
    assert len(run("/usr/bin/openssl", "rand", "-hex", "16")) == 32
    assert "PRIVATE KEY" in run("/usr/bin/openssl", "genpkey", "-algorithm", "ed25519")
    assert run("/usr/bin/dash", "-c", "echo a | { read x; echo $x; }; ( exit 3 ); echo $?") == "a\n3"
    assert run("/bin/busybox", "sh", "-c", "echo $(( 1 + 1 ))") == "2"

    refused = dict(line.split() for line in run("/usr/bin/python3", "-c", REFUSED).splitlines())
    assert refused.pop("clone3") == refused.pop("io_uring_setup") == "ENOSYS"
    assert set(refused.values()) == {"EPERM"}, refused
    assert len(refused) == 27
