"""Ordinary programs of Debian run under the strict profile."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.root

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
