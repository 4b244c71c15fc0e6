"""The kernel's OOM kills in control groups: their number, and immediate notices. Kills nothing.

cgroup version 2 counts in ``memory.events`` and notifies by inotify(7). Version 1 counts in ``memory.oom_control`` and
notifies by eventfd(2), through ``cgroup.event_control``. An eventfd doesn't show which group an event came from, and
version 1 also notifies when a group is removed. So each group has a separate eventfd, and a removal makes this module
check only the removed group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
from collections.abc import Callable

from netspace.supervision.cgroup import file_value

ROOT = "/sys/fs/cgroup"

IN_MODIFY, IN_IGNORED = 0x2, 0x8000
_EVENT = struct.Struct("iIII")


def kills(cgroup: str, root: str = ROOT) -> int:
    """Return the number of OOM kills in *cgroup* since its creation; 0 if the group doesn't exist.

    :param root: where the cgroup file systems are mounted; only tests set it.
    """
    for file in (f"{root}{cgroup}/memory.events", f"{root}/memory{cgroup}/memory.oom_control"):
        if (count := _count(file)) is not None:
            return count
    return 0


def reader(above: str = "") -> Callable[[str], int]:
    """Return a function like :func:`kills` for many control groups. It knows the kind of hierarchy already.

    :param above: a control group that contains all of them. Version 2 counts there what happens below it. If this count
        is zero, no other file is read.
    """
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        if above and _count(f"{ROOT}{above}/memory.events") == 0 and _sums():
            return lambda cgroup: 0
        return lambda cgroup: _count(f"{ROOT}{cgroup}/memory.events") or 0
    return lambda cgroup: _count(f"{ROOT}/memory{cgroup}/memory.oom_control") or 0


def _sums(mounts: str = "/proc/self/mounts") -> bool:
    """Return True if each control group of version 2 also counts events of the groups below it; False if it may not.

    It doesn't if the hierarchy was mounted with the option ``memory_localevents``. A host has thousands of mounts, and
    this one is among the first.
    """
    for line in (file_value(mounts) or b"").split(b"\n")[:-1]:
        words = line.split(b" ")
        if words[1:3] == [ROOT.encode(), b"cgroup2"]:
            return b"memory_localevents" not in words[3].split(b",")
    return False


def _count(path: str) -> int | None:
    """Return the number of kills in a file; None if the file can't be read."""
    number = file_value(path, b"oom_kill")
    return None if number is None else int(number) if number.isdigit() else 0


class Notices:
    """Notices of OOM kills in watched control groups. ``fd`` becomes readable when there may be a notice."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self._unified = os.path.exists(f"{root}/cgroup.controllers")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[int, str] = {}  # names by inotify's watch descriptor, or by the group's eventfd
        self._eventfds: dict[str, int] = {}  # only with version 1
        self._poll: select.epoll | None = None
        if self._unified:
            self.fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        else:
            self._poll = select.epoll()  # is readable itself as long as one of the eventfds is
            self.fd = self._poll.fileno()

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def watch(self, name: str, cgroup: str) -> None:
        """Report kills in *cgroup* from now on, as long as the group exists.

        If the kernel can't send notices for the group, kills are only counted.
        """
        with contextlib.suppress(OSError):
            if self._poll is None:
                path = f"{self._root}{cgroup}/memory.events".encode()
                self._watched[self._checked(self._libc.inotify_add_watch(self.fd, path, IN_MODIFY))] = name
            else:
                self._notify(name, f"{self._root}/memory{cgroup}", self._poll)

    def _notify(self, name: str, folder: str, poll: select.epoll) -> None:
        """Make the kernel write to an eventfd of this name before it kills a process of the group *folder*."""
        self.forget(name)
        count = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            control = os.open(f"{folder}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                try:
                    os.write(control, f"{own} {count}".encode())
                    poll.register(own, select.EPOLLIN)
                except OSError:
                    os.close(own)
                    raise
            finally:
                os.close(control)
        finally:
            os.close(count)
        self._eventfds[name], self._watched[own] = own, name

    def forget(self, name: str) -> None:
        """Close the descriptor for the ended group of *name*.

        Version 2 needs no close: inotify drops a removed group.
        """
        own = self._eventfds.pop(name, None)
        if own is not None:
            del self._watched[own]
            # A child between fork and exec has a copy. While one is open, epoll reports the descriptor, closed or not.
            if self._poll is not None:
                self._poll.unregister(own)
            os.close(own)

    def heard(self) -> set[str] | None:
        """Return the names whose groups the kernel has reported since the last call; None if the groups are unknown."""
        if self._poll is not None:
            return {self._watched[own] for own, _ in self._poll.poll(0) if own in self._watched and self._read(own)}
        told = b""
        with contextlib.suppress(BlockingIOError):
            told = os.read(self.fd, 65536)
        names = set()
        while told:
            watch, mask, _, length = _EVENT.unpack_from(told)
            told = told[_EVENT.size + length :]
            if watch < 0:  # the kernel's queue overflowed
                return None
            if mask & IN_IGNORED:
                self._watched.pop(watch, None)
            elif watch in self._watched:
                names.add(self._watched[watch])
        return names

    @staticmethod
    def _read(own: int) -> bool:
        """Return whether the eventfd was written to, and reset it."""
        try:
            return os.eventfd_read(own) > 0
        except BlockingIOError:
            return False
