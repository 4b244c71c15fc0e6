"""Confinement: a program gives up rights for good, before it handles data that it doesn't trust.

The module uses Landlock (landlock(7), Linux 6.7 or later), ``no_new_privs`` (PR_SET_NO_NEW_PRIVS(2const)) and a filter
of system calls (seccomp(2)). They need no privilege. Neither this thread nor a program that it starts later can get the
rights back. After several calls of :func:`confine`, the program keeps only the rights that every call permits.

Landlock checks only connect(2) and bind(2) of TCP sockets. The filter refuses all other system calls that could make or
accept a TCP connection.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # landlock_create_ruleset(2) and others: the same on each architecture
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS
_NETWORK, _DEVICES, _SCOPES = 4, 5, 6  # the versions that brought each of these
_PATH, _PORT = 1, 2  # LANDLOCK_RULE_PATH_BENEATH, LANDLOCK_RULE_NET_PORT
# LANDLOCK_ACCESS_FS_*, in the order of their bits.
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _DEVICE = 1, 2, 4, 8, 1 << 14, 1 << 15
_ALL = (1 << 15) - 1
_OF_A_FILE = _EXECUTE | _WRITE | _READ | _TRUNCATE | _DEVICE
_CONNECT, _BIND = 2, 1  # LANDLOCK_ACCESS_NET_CONNECT_TCP, LANDLOCK_ACCESS_NET_BIND_TCP
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2  # LANDLOCK_SCOPE_*
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf")

_SECCOMP, _FILTER = 22, 2  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
# Instructions of classic BPF (linux/filter.h): load a word of struct seccomp_data; compare; end with an answer.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _END = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets of the call's number, and of the architecture that it was made for
_FIRST, _THIRD, _FOURTH = 16, 32, 40  # offsets of arguments; each of these is a C int, so its lower half is all of it
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_FAST_OPEN = 0x20000000  # MSG_FASTOPEN
_X32 = 0x40000000  # __X32_SYSCALL_BIT: x86-64 has a second set of numbers from here on
_IO_URING_SETUP = 425  # on each architecture
_IP_FAMILIES = (2, 10)  # AF_INET, AF_INET6
_OVER_TCP = (21, 43)  # AF_RDS, AF_SMC: the kernel makes TCP connections for these
_LINUX_PROTOCOLS = 256  # from here on: IPPROTO_SMC and IPPROTO_MPTCP, which are TCP to their peer

_Line = tuple[int, int, int, int]  # code, lines to skip if true, lines to skip if false, value


@dataclass(frozen=True)
class _Machine:
    """Numbers of an architecture: its AUDIT_ARCH (linux/audit.h), and its system calls."""

    architecture: int
    socket: int
    listen: int
    sendto: int
    sendmsg: int
    sendmmsg: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, socket=41, listen=50, sendto=44, sendmsg=46, sendmmsg=307),
    "aarch64": _Machine(0xC00000B7, socket=198, listen=201, sendto=206, sendmsg=211, sendmmsg=269),
}


class ConfinementError(Exception):
    """Error: the program could not give up its rights. It still has all of them, but ``no_new_privs`` may be set."""


@dataclass(frozen=True)
class Confined:
    """The bounds that now hold for this thread, and for all threads and programs that it starts.

    :ivar version: the version of Landlock in the kernel.
    :ivar signals: whether the thread can signal only processes that it starts itself, and reach only abstract Unix
        sockets of such processes (from version 6 on).
    """

    version: int
    signals: bool


def confine(
    *,
    read: Iterable[str | Path] = (),
    write: Iterable[str | Path] = (),
    execute: Iterable[str | Path] = (),
    connect: Iterable[int] = (),
    listen: Iterable[int] = (),
    mailbox: bool = True,
    python: bool = True,
    folder: Path = Path("/run/netspace"),
) -> Confined:
    """Give up all rights to files and to TCP connections, except the rights that the arguments list.

    Files, connections and listening sockets that are open now stay usable. A folder in a list means the folder and all
    files below it.

    The filter also refuses other ways to get a TCP connection: TCP Fast Open, the sockets of MPTCP, SMC and RDS, a new
    io_uring, and system calls of another architecture. So the program can't start a 32-bit program.

    :param read: files and folders that the program may read.
    :param write: files and folders that the program may read, change, create and remove.
    :param execute: files and folders that the program may read and execute. A started program has no more rights than
        this one.
    :param connect: TCP ports to which the program may connect, on any address.
    :param listen: TCP ports on which the program may listen. If the list is empty, listen(2) is refused for all
        sockets, also for Unix sockets. If it isn't empty, the program may also listen on a port that the kernel
        chooses: listen(2) on a socket without an address takes such a port, and no filter can see that.
    :param mailbox: whether to permit also what a :class:`~netspace_client.Mailbox` of this environment needs: the files
        of *folder*, and the ports of the brokers that its card names now.
    :param python: whether to permit also reading the files from which Python imports further modules: Python's folders
        and the system's libraries.
    :raises ConfinementError: a path can't be opened; the kernel's Landlock is missing or can't restrict connections;
        the kernel accepts no filter; the machine is neither x86_64 nor aarch64; or this process has several threads.
        Landlock restricts only the calling thread, so call this function before other threads start.
    """
    version = _version()
    machine = _machine()
    if _threads() != 1:
        raise ConfinementError(
            "this process has several threads, and only one would be confined; call it before other threads start"
        )
    readable, ports, listening = [*read], [*connect], [*listen]
    if mailbox:
        readable.append(folder)
        ports += _brokers(folder)
    if python:
        readable += [path for path in (*_LIBRARIES, sys.prefix, sys.base_prefix, *sys.path) if os.path.exists(path)]
    files = _ALL | (_DEVICE if version >= _DEVICES else 0)
    scopes = _ABSTRACT_SOCKETS | _SIGNALS if version >= _SCOPES else 0
    attributes = (ctypes.c_uint64 * 3)(files, _CONNECT | _BIND, scopes)
    size = ctypes.sizeof(attributes) if scopes else 16
    rules = _call(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for paths, rights in (
            (readable, _READ | _LIST),
            (write, files & ~_EXECUTE),
            (execute, _READ | _LIST | _EXECUTE),
        ):
            for path in paths:
                _beneath(rules, path, rights)
        for numbers, right in ((ports, _CONNECT), (listening, _BIND)):
            for number in numbers:
                rule = (ctypes.c_uint64 * 2)(right, number)
                _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_PORT), ctypes.byref(rule), ctypes.c_uint32(0))
        _no_new_privileges()
        _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)
    _install(_filter(machine, listen=bool(listening)))
    return Confined(version, bool(scopes))


def _threads() -> int:
    """Return the number of this process's threads. After a first confinement, only Python's own threads are counted."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _version() -> int:
    """Return the version of Landlock.

    :raises ConfinementError: the kernel has no Landlock, or a version that can't restrict connections.
    """
    try:
        found = _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except ConfinementError as err:
        raise ConfinementError(f"this kernel has no Landlock, or it is off ({err}); see its parameter lsm=") from None
    if found < _NETWORK:
        raise ConfinementError(f"Landlock {found} of this kernel can't restrict connections; use Linux 6.7 or later")
    return found


def _machine() -> _Machine:
    """Return the numbers of this machine's architecture.

    :raises ConfinementError: this module doesn't know the architecture, or the kernel has no filters of system calls.
    """
    name = os.uname().machine
    if name not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise ConfinementError(f"connections can't be restricted on {name}; use a 64-bit Python on x86_64 or aarch64")
    # A kernel with filters looks for the filter at this address, and finds none.
    if _prctl(_SECCOMP, _FILTER, 0) == 0 or ctypes.get_errno() != errno.EFAULT:
        raise ConfinementError(f"this kernel takes no filter of system calls: {os.strerror(ctypes.get_errno())}")
    return _MACHINES[name]


def _filter(machine: _Machine, *, listen: bool) -> list[_Line]:
    """Return the filter of system calls that make TCP connections which Landlock's rules for ports don't cover.

    :param listen: whether the program may listen.
    """
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, machine.architecture), (_END, 0, 0, _REFUSE | errno.EPERM)]
    lines += _refused(errno.EPERM, (_NUMBER, _AT_LEAST, _X32))
    # The kernel would do the same calls for the ring's owner, and no filter sees what is in a ring.
    lines += _refused(errno.ENOSYS, (_NUMBER, _EQUAL, _IO_URING_SETUP))
    for number, flags in ((machine.sendto, _FOURTH), (machine.sendmsg, _THIRD), (machine.sendmmsg, _FOURTH)):
        lines += _refused(errno.EACCES, (_NUMBER, _EQUAL, number), (flags, _ANY_BIT, _FAST_OPEN))
    socket = (_NUMBER, _EQUAL, machine.socket)
    for family in _IP_FAMILIES:
        lines += _refused(errno.EACCES, socket, (_FIRST, _EQUAL, family), (_THIRD, _AT_LEAST, _LINUX_PROTOCOLS))
    for family in _OVER_TCP:
        lines += _refused(errno.EACCES, socket, (_FIRST, _EQUAL, family))
    if not listen:
        lines += _refused(errno.EACCES, (_NUMBER, _EQUAL, machine.listen))
    return [*lines, (_END, 0, 0, _ALLOW)]


def _refused(error: int, *conditions: tuple[int, int, int]) -> list[_Line]:
    """Return the lines of a filter that refuse a system call with *error* if all *conditions* hold.

    :param conditions: each a tuple of the value's offset, the comparison, and the value to compare with.
    """
    lines = []
    for left, (offset, comparison, value) in zip(reversed(range(len(conditions))), conditions, strict=True):
        lines += [(_LOAD, 0, 0, offset), (comparison, 0, 2 * left + 1, value)]
    return [*lines, (_END, 0, 0, _REFUSE | error)]


def _install(lines: list[_Line]) -> None:
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    # struct sock_fprog: the number of lines, padded, and their address.
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(text)))
    if _prctl(_SECCOMP, _FILTER, ctypes.addressof(program)) != 0:
        raise ConfinementError(f"filter of system calls: {os.strerror(ctypes.get_errno())}")


def _brokers(folder: Path) -> list[int]:
    """Return the ports of the brokers in the card."""
    from netspace_client import card
    from netspace_client.errors import CardError

    try:
        known = card.load(folder)
    except CardError as err:
        raise ConfinementError(f"the card can't be read: {err}; without one, give mailbox=False") from err
    return sorted({broker.port for broker in known.brokers})


def _beneath(rules: int, path: str | Path, rights: int) -> None:
    """Permit *rights* for the file *path*, or for the folder *path* and all files below it."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as err:
        raise ConfinementError(f"{path}: {err.strerror}") from err
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _OF_A_FILE
        # struct landlock_path_beneath_attr is packed: 8 bytes of rights, 4 of the descriptor.
        rule = rights.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_PATH), ctypes.c_char_p(rule), ctypes.c_uint32(0))
    finally:
        os.close(opened)


def _no_new_privileges() -> None:
    if _prctl(_NO_NEW_PRIVS, 1, 0) != 0:
        raise ConfinementError(f"no_new_privs: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, second: int, third: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc().prctl(ctypes.c_int(option), ctypes.c_ulong(second), ctypes.c_ulong(third), zero, zero))


def _call(number: int, *arguments: object) -> int:
    found = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise ConfinementError(os.strerror(ctypes.get_errno()))
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
