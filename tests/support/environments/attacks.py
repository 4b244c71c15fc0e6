"""Attacks that once succeeded inside an environment, tried again.

Each row has the refusal, or the bound that was reached.

This program runs inside an environment, with only Python's standard library. It prints one line of JSON, and then keeps
the units that it took. ``ROWS`` names the resource that each row takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
CARD = "/run/netspace/environment.json"
MARK = "attacks: "
MIB = 1024**2
OF_MEMORY = (0x01021994, 0x01021997)  # tmpfs; what gVisor calls it
MODULES = (
    *("__future__", "collections.abc", "contextlib", "ctypes", "errno", "fcntl", "json", "mmap", "os", "resource"),
    *("select", "signal", "socket", "struct", "time", "encodings.idna", "encodings.ascii"),
)


class Succeeded(Exception):
    """The attack succeeded."""


def call(number: int, *arguments: int | bytes) -> int:
    """Make a system call of x86-64; raise OSError if it fails."""
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def lease_on_its_output() -> str:
    fcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    raise Succeeded


def lease_on_its_card() -> str:
    with open(CARD, "rb") as card:
        fcntl.fcntl(card, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    raise Succeeded


def lease_on_its_own_file() -> str:
    with open("/work/leased", "w") as own:
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    raise Succeeded


def _as_many(take: Callable[[], object], most: int) -> str:
    """Take units until an error; hold the taken units."""
    for number in range(most):
        try:
            take()
        except OSError:
            return f"bounded: {number}"
    raise Succeeded


def inotify_instances() -> str:
    def take() -> None:
        if LIBC.inotify_init1(0) < 0:
            raise OSError(ctypes.get_errno(), "")

    return _as_many(take, 900)


def timers() -> str:
    return _as_many(lambda: call(222, 1, 0, ctypes.addressof(ctypes.c_int())), 4000)


def space_for_its_output() -> str:
    call(285, 1, 1, 0, 1 << 30)
    raise Succeeded


def unread_data() -> str:
    """Fill connections over the environment's own lo that nobody reads, with 256 MiB at most."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    held, total, block, until = [], 0, bytes(MIB), time.monotonic() + 5
    while total < 256 * MIB and time.monotonic() < until and len(held) < 400:
        sender = socket.create_connection(listener.getsockname())
        held += [sender, listener.accept()[0]]
        sender.setblocking(False)
        pauses = 0
        while pauses < 3:
            try:
                total += sender.send(block)
                pauses = 0
            except BlockingIOError:
                pauses += 1
                time.sleep(0.001)
    for one in held:
        one.close()
    if total > 3 * 64 * MIB:
        raise Succeeded(f"{total // MIB} MiB")
    return f"bounded: {total // MIB} MiB"


def dropped_pages() -> str:
    with open("/proc/self/exe", "rb") as program:
        os.posix_fadvise(program.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    raise Succeeded


def core_limit() -> str:
    if resource.getrlimit(resource.RLIMIT_CORE) != (1, 1):
        raise Succeeded(str(resource.getrlimit(resource.RLIMIT_CORE)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # which may seem to succeed
    if resource.getrlimit(resource.RLIMIT_CORE) != (1, 1):
        raise Succeeded
    return "refused: it has no effect"


def huge_pages() -> str:
    mmap.mmap(-1, 2 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    raise Succeeded


def huge_file() -> str:
    call(319, b"huge", 4)  # memfd_create, MFD_HUGETLB
    raise Succeeded


def huge_segment() -> str:
    call(29, 0, 2 * MIB, 0o4000 | 0o1600)  # shmget, SHM_HUGETLB
    raise Succeeded


def synced_host() -> str:
    with open(CARD, "rb") as card:
        call(306, card.fileno())  # syncfs
    raise Succeeded


def merged_pages() -> str:
    if LIBC.prctl(67, 1, 0, 0, 0) == 0:  # PR_SET_MEMORY_MERGE
        raise Succeeded
    block = mmap.mmap(-1, MIB)
    block.madvise(12)  # MADV_MERGEABLE
    raise Succeeded


def file_system_of_its_card() -> str:
    told = ctypes.create_string_buffer(120)
    LIBC.statfs(b"/run/netspace", told)
    kind, _, blocks = struct.unpack_from("qqQ", told)
    size = blocks * os.statvfs("/run/netspace").f_frsize
    if kind not in OF_MEMORY or size > 8 * MIB:
        raise Succeeded(f"{kind:x}, {size} bytes")
    return f"bounded: its own, {size // MIB} MiB"


def host_services() -> str:
    for port in (4369, 4379, 5672, 15672, 25672, 25682, 25671):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            raise Succeeded(str(port))
    return "refused: nothing listens"


ROWS: dict[str, Callable[[], str]] = {
    "2 lease on its output": lease_on_its_output,
    "3 lease on its card": lease_on_its_card,
    "16 lease on a file that the host reads": lease_on_its_own_file,
    "4 inotify instances": inotify_instances,
    "5 timers": timers,
    "6 space under its output": space_for_its_output,
    "8 unread data": unread_data,
    "10 pages dropped from the cache": dropped_pages,
    "12 services of the host": host_services,
    "15 core handler": core_limit,
    "17 huge pages": huge_pages,
    "17 huge file": huge_file,
    "17 huge segment": huge_segment,
    "18 syncfs": synced_host,
    "21, 22 file system of its card": file_system_of_its_card,
    "27 merged pages": merged_pages,
}


def outcome(attack: Callable[[], str]) -> str:
    try:
        return attack()
    except Succeeded as err:
        return f"SUCCEEDED {err}".strip()
    except OSError as err:
        return f"refused: {errno.errorcode.get(err.errno or 0, '')}"
    except ValueError as err:
        return f"refused: {err}"


def apart(attack: Callable[[], str]) -> str:
    """Run an attack in a process of its own, which the kernel may kill for the attack."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writes, outcome(attack).encode())
        os._exit(0)
    os.close(writes)
    told = os.read(reads, 1000).decode() if select.select([reads], [], [], 60)[0] else ""
    os.close(reads)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return told or ("bounded: killed" if os.WIFSIGNALED(status) else "failed to attack")


def main() -> None:
    # Those whose booty the host looks for are not made apart: it is held.
    held = (inotify_instances, timers)
    found = {row: (outcome if attack in held else apart)(attack) for row, attack in ROWS.items()}
    print(MARK + json.dumps(found), flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    main()
