"""Confinement: a program gives up rights by itself, before it touches what it doesn't trust.

Landlock (landlock(7), Linux 6.7 or later) and ``no_new_privs`` (PR_SET_NO_NEW_PRIVS(2const)) need no right, and nobody
gets the rights back: neither this thread, nor what it starts later. After several calls, only what each of them permits
is permitted.
"""

from __future__ import annotations

import ctypes
import os
import stat
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


class ConfinementError(Exception):
    """The program could not give up rights. It has all that it had, but perhaps ``no_new_privs``."""


@dataclass(frozen=True)
class Confined:
    """Bounds that hold now for this thread, and for all that it starts.

    :ivar version: the version of Landlock in the kernel.
    :ivar signals: whether it can signal, and reach by abstract Unix sockets, only what it starts itself (from version 6
        on).
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
    """Give up all rights to files, and all TCP connections, but these.

    What is open stays open: files, connections, listening sockets. Folders count with all that is below them.

    :param read: what may be read.
    :param write: what may be read, changed, made and removed.
    :param execute: what may be read and started. What it starts has no more rights than this program.
    :param connect: TCP ports to which it may connect, on any address.
    :param listen: TCP ports on which it may listen.
    :param mailbox: what a :class:`~netspace_client.Mailbox` of this environment needs may be used: the files of
        *folder*, and the ports of the brokers that its card names now.
    :param python: what Python needs to import further modules may be read: its folders, and the system's libraries.
    :raises ConfinementError: a path can't be opened, the kernel has no Landlock that bounds connections, or this
        process has several threads. Landlock bounds the thread that calls, and the others would go on as before: so
        call it before there are any.
    """
    version = _version()
    if _threads() != 1:
        raise ConfinementError("this process has several threads, and only one would be confined; call it before")
    readable, ports = [*read], [*connect]
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
        for numbers, right in ((ports, _CONNECT), (listen, _BIND)):
            for number in numbers:
                rule = (ctypes.c_uint64 * 2)(right, number)
                _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_PORT), ctypes.byref(rule), ctypes.c_uint32(0))
        _no_new_privileges()
        _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)
    return Confined(version, bool(scopes))


def _threads() -> int:
    """Return the number of threads of this process; after a first confinement, of those that Python knows."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _version() -> int:
    """Return the version of Landlock.

    :raises ConfinementError: there is none, or none that bounds connections.
    """
    try:
        found = _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except ConfinementError as err:
        raise ConfinementError(f"this kernel has no Landlock, or it is off ({err}); see its parameter lsm=") from None
    if found < _NETWORK:
        raise ConfinementError(f"Landlock {found} of this kernel bounds no connections; Linux 6.7 or later is needed")
    return found


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
    """Permit these rights for a file, or for a folder with all below."""
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
    if _libc().prctl(_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise ConfinementError(f"no_new_privs: {os.strerror(ctypes.get_errno())}")


def _call(number: int, *arguments: object) -> int:
    found = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise ConfinementError(os.strerror(ctypes.get_errno()))
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
