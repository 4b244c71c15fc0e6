"""Attacks that once succeeded inside an environment, tried again.

For each attack, the result has a row with the refusal, or with the limit that was reached.

This program runs inside an environment, with only Python's standard library. It prints one line of JSON, and then keeps
the units that it took. If an attack ended the whole environment, the next start continues with the next attack.
``ROWS`` names the resource that each row takes. Called with ``watch``, the program waits for a process of the host that
enters the environment, attacks that process in several ways, prints the ways that succeeded, and exits.
``attackers.fill`` makes a root that has the program.
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
import sys
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
CARD = "/run/netspace/environment.json"
MARK = "attacks: "
PROGRESS = "/work/progress.json"  # in its own layer, which outlives a start
# On cgroup version 2 the kernel ends the whole environment, not only the process that takes too much memory.
KILLED = "bounded: killed with the whole environment"
MIB = 1024**2
OF_MEMORY = (0x01021994, 0x01021997)  # tmpfs; what gVisor calls it
MODULES = (
    *("__future__", "collections.abc", "contextlib", "ctypes", "errno", "fcntl", "json", "mmap", "os", "resource"),
    *("select", "signal", "socket", "struct", "sys", "time", "encodings.idna", "encodings.ascii"),
)


class Succeeded(Exception):
    """Exception: the attack succeeded."""


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
    """Take units until an error; keep the taken units."""
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


def queued_signals() -> str:
    signal.signal(40, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [40])
    told = struct.pack("iiii", 40, 0, -1, 0).ljust(128, b"\0")
    return _as_many(lambda: call(129, os.getpid(), 40, told), 4000)  # rt_sigqueueinfo


def space_for_its_output() -> str:
    call(285, 1, 1, 0, 1 << 30)
    raise Succeeded


def unread_data() -> str:
    """Fill connections over the environment's own loopback with up to 256 MiB of data that is never read."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    held, total, block, until = [], 0, bytes(MIB), time.monotonic() + 5
    listener.settimeout(1)
    while total < 256 * MIB and time.monotonic() < until and len(held) < 400:
        try:  # without memory for one more, the kernel drops its first packets, and TCP tries for two minutes
            sender = socket.create_connection(listener.getsockname(), timeout=1)
            held += [sender, listener.accept()[0]]
        except OSError:
            break
        sender.setblocking(False)
        pauses = 0
        while pauses < 3 and time.monotonic() < until:
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


def unread_datagrams() -> str:
    """Fill UDP sockets with up to 300 MiB of datagrams that are never read, and count the bytes that they hold."""
    held: list[socket.socket] = []
    block, total, until = bytes(60_000), 0, time.monotonic() + 20
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while len(held) < 700 and time.monotonic() < until:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
        receiver.setblocking(False)
        receiver.bind(("127.0.0.1", 0))
        for _ in range(8):
            with contextlib.suppress(OSError):  # no room for it; there may be for the next one
                sender.sendto(block, receiver.getsockname())
        held.append(receiver)
    for receiver in held:
        with contextlib.suppress(BlockingIOError):
            while True:
                total += len(receiver.recv(65536))
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


def _links(netlink: socket.socket, *attributes: bytes) -> list[dict[int, bytes]]:
    """Return the attributes of each network interface that the kernel lists (rtnetlink(7), RTM_GETLINK)."""
    body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + b"".join(attributes)
    netlink.send(struct.pack("IHHII", 16 + len(body), 18, 0x301, 1, 0) + body)
    links: list[dict[int, bytes]] = []
    while True:
        data = netlink.recv(1 << 20)
        while data:
            size, kind = struct.unpack_from("IH", data)
            message, data = data[:size], data[(size + 3) & ~3 :]
            if kind in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                if code := -struct.unpack_from("i", message, 16)[0]:
                    raise OSError(code, os.strerror(code))
                return links
            found, rest = {}, message[32:]
            while len(rest) >= 4:
                length, name = struct.unpack_from("HH", rest)
                found[name & 0x3FFF] = rest[4:length]
                rest = rest[(length + 3) & ~3 :]
            links.append(found)


def interfaces_of_the_host() -> str:
    """Request the interfaces of the host's namespace, which contains the other end of the environment's interface."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(20)
        own = [link for link in _links(netlink) if 37 in link]  # IFLA_LINK_NETNSID
        if not own:
            return "refused: none of its own leads there"
        (number,) = struct.unpack("i", own[0][37])
        (index,) = struct.unpack("I", own[0][5])  # IFLA_LINK
        try:
            links = _links(netlink, struct.pack("HHi", 8, 46, number))  # IFLA_TARGET_NETNSID
        except OSError as err:
            return f"refused: {errno.errorcode.get(err.errno or 0, '')}; only the number {index} is told"
    raise Succeeded(f"{len(links)} interfaces")


ROWS: dict[str, Callable[[], str]] = {
    "2 lease on its output": lease_on_its_output,
    "3 lease on its card": lease_on_its_card,
    "16 lease on a file that the host reads": lease_on_its_own_file,
    "4 inotify instances": inotify_instances,
    "5 queued signals": queued_signals,
    "5 timers": timers,
    "6 space under its output": space_for_its_output,
    "8 unread data": unread_data,
    "8 unread datagrams": unread_datagrams,
    "10 pages dropped from the cache": dropped_pages,
    "12 services of the host": host_services,
    "15 core handler": core_limit,
    "17 huge pages": huge_pages,
    "17 huge file": huge_file,
    "17 huge segment": huge_segment,
    "18 syncfs": synced_host,
    "21, 22 file system of its card": file_system_of_its_card,
    "26 interfaces of the host": interfaces_of_the_host,
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
    """Run an attack in a separate process, which the kernel may kill because of the attack."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writes, outcome(attack).encode())
        os._exit(0)
    os.close(writes)
    told = os.read(reads, 1000).decode() if select.select([reads], [], [], 240)[0] else ""
    os.close(reads)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return told or ("bounded: killed" if os.WIFSIGNALED(status) else "failed to attack")


def begun() -> dict[str, str]:
    """Return the outcomes of earlier attacks, if one of them ended the whole environment, which was then restarted."""
    try:
        with open(PROGRESS) as stream:
            return dict(json.load(stream))
    except FileNotFoundError:
        return {}


def remember(found: dict[str, str]) -> None:
    with open(PROGRESS, "w") as stream:
        json.dump(found, stream)


def main() -> None:
    # Those whose booty the host looks for are not made apart, because it is held; and last, because others need room.
    held = (inotify_instances, timers)
    found = begun()
    for row, attack in ROWS.items():
        if attack not in held and row not in found:
            remember({**found, row: KILLED})
            found[row] = apart(attack)
    remember(found)
    found.update({row: outcome(attack) for row, attack in ROWS.items() if attack in held})
    print(MARK + json.dumps(found), flush=True)
    while True:
        time.sleep(1)


# What a process may try on another one. What is told to everybody (its name, its arguments) is not among it.
TRIES: dict[str, Callable[[int], object]] = {
    "exe": lambda pid: os.readlink(f"/proc/{pid}/exe"),
    "root": lambda pid: os.listdir(f"/proc/{pid}/root/"),
    "cwd": lambda pid: os.listdir(f"/proc/{pid}/cwd/"),
    "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "variables": lambda pid: os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY)),
    "memory": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "map": lambda pid: os.close(os.open(f"/proc/{pid}/maps", os.O_RDONLY)),
    "namespaces": lambda pid: os.readlink(f"/proc/{pid}/ns/mnt"),
    "signal": lambda pid: os.kill(pid, 0),
    "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
    "processors": lambda pid: os.sched_setaffinity(pid, {0}),
    "limits": lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE),
    "tracing": lambda pid: call(101, 16, pid, 0, 0),  # ptrace, PTRACE_ATTACH
    "its descriptor 0": lambda pid: call(438, os.pidfd_open(pid), 0, 0),  # pidfd_getfd
}


AGAIN = (None, "ENOENT", "ESRCH")  # the process was gone


def outcome_of(attempt: Callable[[int], object], pid: int) -> str:
    """Attack a process in one way; return empty if the attack succeeded, else the error's name."""
    try:
        attempt(pid)
    except OSError as err:
        return errno.errorcode.get(err.errno or 0, str(err))
    return ""


def user_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return None


def watch() -> None:
    """Attack the processes of other users that enter the environment, until each attack has an outcome.

    Print the outcomes as a mapping. ``other`` has the outcomes of attacks on these processes, ``own`` those of attacks
    on this program itself. ``programs`` has the files that processes of this program's user run and that don't exist
    inside. ``arguments`` has the arguments of other users' processes.
    """
    own, me = os.getuid(), os.getpid()
    outcomes: dict[str, str] = {}
    programs, arguments = set(), set()
    while any(outcomes.get(name) in AGAIN for name in TRIES):
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            if user_of(pid) == own:
                with contextlib.suppress(OSError):
                    if not os.path.exists(program := os.readlink(f"/proc/{pid}/exe")):
                        programs.add(program)
            else:
                with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as stream:
                    arguments.add(stream.read().replace("\0", " "))
            for name, attempt in TRIES.items():
                if outcomes.get(name) in AGAIN and user_of(pid) not in (own, None):
                    told = outcome_of(attempt, pid)
                    # Meanwhile it may have become a program of this user, on which all that is allowed.
                    if told or user_of(pid) != own:
                        outcomes[name] = told
    mine = {name: outcome_of(attempt, me) for name, attempt in TRIES.items()}
    found = {"other": outcomes, "own": mine, "programs": sorted(programs), "arguments": sorted(arguments)}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:] == ["watch"]:
        watch()
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        main()
