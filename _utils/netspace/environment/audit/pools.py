"""Pools of the kernel, from which ``exhaust.py`` takes units.

This file uses only the standard library, because the audit copies it into a twin. A pool is a function that returns a
*taker*. Each call of the taker takes and holds one more unit, or raises OSError if the kernel refuses the unit. Most
units are released when the process ends. For other units, the pool adds callbacks to the given exit stack.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

MIB = 1024**2
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Place:
    """Surroundings of a process that takes units.

    :param folder: the folder in which the process makes files.
    :param hold: a descriptor that becomes readable when the process must release all units.
    :param aim: addresses to which the process sends packets.
    """

    folder: str
    hold: int
    aim: tuple[str, ...] = ()


Take = Callable[[], object]
Taker = Callable[[Place, ExitStack], Take]


@dataclass(frozen=True)
class Pool:
    """A pool of units.

    :param most: the greatest number of units to ask for.
    :param brief: whether a unit stays when its process is killed. In this case, the units of a small share are taken
        one by one, and each is released before the next is taken.
    """

    take: Taker
    most: int
    brief: bool = False


POOLS: dict[str, Pool] = {}


def pool(name: str, most: int, brief: bool = False) -> Callable[[Taker], None]:
    """Register the decorated function as a pool.

    :param most: the greatest number of units to take.
    """

    def register(take: Taker) -> None:
        POOLS[name] = Pool(take, most, brief)

    return register


def each(name: str, most: int) -> Callable[[Callable[[int], object]], None]:
    """Register a pool in which each unit is an object that the decorated function returns.

    The pool keeps all objects, so the process holds their units until it ends.

    :param most: the greatest number of units to take.
    """

    def register(take: Callable[[int], object]) -> None:
        def taker(place: Place, after: ExitStack) -> Take:
            kept: list[object] = []
            return lambda: kept.append(take(len(kept)))

        POOLS[name] = Pool(taker, most)

    return register


def checked(result: int) -> int:
    """Return the result of a call of the C library. Raise OSError if the result is -1."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def called(x86: int, arm: int, *arguments: object) -> int:
    """Make a system call by its number on x86-64 or on Arm, without the C library's wrapper."""
    LIBC.syscall.restype = ctypes.c_long
    number = x86 if os.uname().machine == "x86_64" else arm
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    return checked(int(LIBC.syscall(ctypes.c_long(number), *words)))


def beside(place: Place, act: Callable[[], object]) -> int:
    """Call *act* in a child process, which lives until all units must be released; return the child's process id."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        code = 0
        try:
            act()
        except OSError as err:
            code = err.errno or errno.EIO
        os.write(writer, struct.pack("=i", code))
        os.read(place.hold, 1)
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 4)
    os.close(reader)
    code = struct.unpack("=i", answer)[0] if len(answer) == 4 else errno.ENOMEM
    if code:
        end(pid)
        raise OSError(code, os.strerror(code))
    return pid


def end(pid: int) -> None:
    """Kill a child process."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def others(act: Callable[[], object]) -> Taker:
    """Return a taker that starts a child process for each unit, and calls *act* in the child."""

    def taker(place: Place, after: ExitStack) -> Take:
        return lambda: after.callback(end, beside(place, act))

    return taker


# -- bounded per process, user or cgroup -----------------------------------------------------
pool("processes", 5000)(others(lambda: None))
pool("user namespaces", 1000)(others(lambda: checked(LIBC.unshare(0x10000000))))


class _Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def _install() -> None:
    code = struct.pack("=HBBI", 0x20, 0, 0, 0) * 4095 + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    checked(LIBC.prctl(38, 1, 0, 0, 0))
    checked(LIBC.prctl(22, 2, ctypes.byref(_Filter(4096, code)), 0, 0))


pool("compiled filters", 2000)(others(_install))


@each("memory (MiB)", 2048)
def _memory(number: int) -> object:
    block = mmap.mmap(-1, MIB)
    for offset in range(0, MIB, 4096):
        block[offset] = 1
    return block


@each("descriptors", 10_000)
def _descriptor(number: int) -> object:
    return os.open("/", os.O_PATH)


@pool("descriptors in flight", 10_000)
def _in_flight(place: Place, after: ExitStack) -> Take:
    pairs: list[tuple[socket.socket, socket.socket]] = []
    sent = itertools.count()

    def one() -> None:
        if next(sent) % 200 == 0:
            pairs.append(socket.socketpair())
            pairs[-1][0].setblocking(False)
        pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", 0))])

    return one


@each("inotify instances", 5000)
def _instance(number: int) -> object:
    return checked(LIBC.inotify_init1(0))


@pool("inotify watches", 5000)
def _watches(place: Place, after: ExitStack) -> Take:
    instance, numbers = checked(LIBC.inotify_init1(0)), itertools.count()

    def one() -> None:
        path = f"{place.folder}/watched-{os.getpid()}-{next(numbers)}"
        os.mkdir(path)
        after.callback(os.rmdir, path)
        checked(LIBC.inotify_add_watch(instance, path.encode(), 1))

    return one


@pool("epoll watches", 40_000)
def _epoll(place: Place, after: ExitStack) -> Take:
    watched, watchers = [os.dup(0) for _ in range(200)], [select.epoll()]
    numbers = itertools.count()

    def one() -> None:
        number = next(numbers) % len(watched)
        if number == 0:
            watchers.append(select.epoll())
        watchers[-1].register(watched[number])

    return one


@pool("queued signals", 5000)
def _signals(place: Place, after: ExitStack) -> Take:
    number = signal.SIGRTMIN + 4
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    return lambda: checked(LIBC.sigqueue(os.getpid(), int(number), None))


@each("timers", 5000)
def _timer(number: int) -> object:
    return called(222, 107, 1, None, ctypes.byref(ctypes.c_int()))


@each("locked memory (pages)", 4096)
def _locked(number: int) -> object:
    page = mmap.mmap(-1, 4096)
    checked(LIBC.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page))), ctypes.c_size_t(4096)))
    return page


@each("pipes of 64 KiB", 5000)
def _pipe(number: int) -> object:
    ends = os.pipe()
    if fcntl.fcntl(ends[0], 1032) < 65536:  # F_GETPIPE_SZ
        raise OSError(errno.EDQUOT, "only a smaller one")
    return ends


@pool("file locks", 60_000)
def _locks(place: Place, after: ExitStack) -> Take:
    locked: list[int] = []
    numbers = itertools.count()

    def one() -> None:
        number = next(numbers)
        if number % 200 == 0:  # the kernel searches the locks of a file one by one
            locked.append(os.open(place.folder, os.O_TMPFILE | os.O_RDWR, 0o600))
        fcntl.lockf(locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * number)

    return one


# -- kept by the kernel for the whole host -------------------------------------------------------
@each("POSIX message queues", 500)
def _queue(number: int) -> object:
    name = f"/netspace-{os.getpid()}-{number}".encode()
    found = checked(LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None))
    checked(LIBC.mq_unlink(name))
    return found


def _system_v(make: Callable[[], int], remove: Callable[[int], object]) -> Taker:
    def taker(place: Place, after: ExitStack) -> Take:
        return lambda: after.callback(remove, checked(make()))

    return taker


pool("System V queues", 3000, brief=True)(
    _system_v(lambda: int(LIBC.msgget(0, 0o1600)), lambda one: LIBC.msgctl(one, 0, None))
)
pool("System V semaphores (sets of 100)", 1000, brief=True)(
    _system_v(lambda: int(LIBC.semget(0, 100, 0o1600)), lambda one: LIBC.semctl(one, 0, 0))
)
pool("System V segments", 5000, brief=True)(
    _system_v(lambda: int(LIBC.shmget(0, ctypes.c_size_t(4096), 0o1600)), lambda one: LIBC.shmctl(one, 0, None))
)


@each("keys", 5000)
def _key(number: int) -> object:
    # On the process's own keyring, which ends with the process.
    return called(248, 217, b"user", f"netspace-{number}".encode(), b"x", 1, -2)


@each("pseudo terminals", 5000)
def _terminal(number: int) -> object:
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)


@each("huge pages", 1000)
def _huge(number: int) -> object:
    return mmap.mmap(-1, 2 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)


@each("asynchronous file operations (64)", 4096)
def _asynchronous(number: int) -> object:
    return called(206, 0, 64, ctypes.byref(ctypes.c_ulong()))


@pool("files in memory", 5000)
def _files(place: Place, after: ExitStack) -> Take:
    numbers = itertools.count()

    def one() -> None:
        path = f"{place.folder}/file-{os.getpid()}-{next(numbers)}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        after.callback(os.unlink, path)

    return one


def unnamed() -> int:
    """Open a file without a name on the disk of the environment's layer. No file is left when this process ends."""
    for folder in ("/var/tmp", "/", "/var", "/home", "/srv", "/opt"):  # noqa: S108 (without a name)
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    raise OSError(errno.EROFS, "its user may write to no folder of the image")


@pool("disk (MiB)", 512)
def _disk(place: Place, after: ExitStack) -> Take:
    opened = unnamed()

    def one() -> None:
        written = 0
        while written < MIB:
            written += os.write(opened, b"\xa5" * (MIB - written))

    return one


@each("files on disk", 10_000)
def _on_disk(number: int) -> object:
    return unnamed()


# -- network -----------------------------------------------------------------------------------------
def _fill(sender: socket.socket, least: int) -> None:
    """Send until the socket would block; raise OSError if the socket accepted fewer than *least* bytes."""
    sender.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sender.send(bytes(65536))
    if sent < least:
        raise OSError(errno.ENOBUFS, "the kernel gives hardly any buffer")


def _listener(buffer: int = 0) -> socket.socket:
    listener = socket.socket()
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    return listener


@pool("buffers of TCP connections", 1000)
def _tcp(place: Place, after: ExitStack) -> Take:
    listener, kept = _listener(), []

    def one() -> None:
        sender = socket.create_connection(listener.getsockname(), timeout=2)
        kept.append((sender, listener.accept()[0]))
        _fill(sender, 16384)

    return one


@pool("orphaned TCP connections", 5000)
def _orphans(place: Place, after: ExitStack) -> Take:
    # Nobody accepts these connections, so they use no descriptor; unsent data keeps each in the kernel.
    listeners: list[socket.socket] = []
    numbers = itertools.count()

    def one() -> None:
        if next(numbers) % 2000 == 0:
            listeners.append(_listener(buffer=1))
        with socket.socket() as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            sender.settimeout(2)
            sender.connect(listeners[-1].getsockname())
            _fill(sender, 1)

    return one


@each("buffers of UDP sockets", 5000)
def _udp(number: int) -> object:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setblocking(False)
    receiver.bind(("127.0.0.1", 0))
    for _ in range(5):
        receiver.sendto(bytes(60_000), receiver.getsockname())
    receiver.recv(1, socket.MSG_PEEK)
    return receiver


@each("buffers of Unix sockets", 5000)
def _unix(number: int) -> object:
    ends = socket.socketpair()
    _fill(ends[0], 16384)
    return ends


@pool("connections that the host follows", 5000)
def _followed(place: Place, after: ExitStack) -> Take:
    if not place.aim:
        raise OSError(errno.ENETUNREACH, "it has no interface")
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in place.aim]
    senders = [socket.socket(family, socket.SOCK_DGRAM) for family in families]
    numbers = itertools.count()

    def one() -> None:
        port, which = divmod(next(numbers), len(senders))
        with contextlib.suppress(PermissionError, ConnectionRefusedError, BlockingIOError):  # the next packet may pass
            senders[which].sendto(b"x", socket.MSG_DONTWAIT, (place.aim[which], 1024 + port % 60_000))

    return one
