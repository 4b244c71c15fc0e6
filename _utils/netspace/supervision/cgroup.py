"""Control groups of services, and the cgroup controllers of the host (cgroups(7))."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import files

if TYPE_CHECKING:
    from netspace.layout import Layout

_READ = os.O_RDONLY | os.O_CLOEXEC
_LONG = 4096  # bytes that hold each file of a control group that netspace reads
_SHORT = 64  # bytes that hold a number


def file_value(path: str, word: bytes = b"") -> bytes | None:
    """Return a control group's file, or the text after *word* on its line; None if the file can't be read.

    :param word: the first word of a line, as in ``memory.events``. If no line begins with this word, the result is
        empty.
    """
    try:
        content = _content(os.open(path, _READ), _LONG)
    except OSError:
        return None
    return _after(content, word) if word and content is not None else content


def values(root: str, cgroups: Sequence[str], file: str, word: bytes = b"") -> Iterator[bytes | None]:
    """Yield :func:`file_value` of the same file in each of many control groups.

    :param root: where the hierarchy is mounted.
    :param cgroups: the groups' paths from *root*.
    """
    # The kernel walks the path that all have in common only once.
    ends = [os.path.dirname(one) for one in (min(cgroups), max(cgroups))] if cgroups else ["/"]
    shared = f"{os.path.commonpath(ends)}/"
    with files.folder(root + shared) as folder:
        if folder is None:
            yield from (None for _ in cgroups)
            return
        start, size, end = len(shared), _LONG if word else _SHORT, f"/{file}"
        opened, read, close = os.open, os.read, os.close
        for path in cgroups:
            content = None
            try:
                fd = opened(path[start:] + end, _READ, 0, dir_fd=folder)
                try:
                    content = read(fd, size)
                finally:
                    close(fd)
            except OSError:  # the group was removed
                pass
            yield _after(content, word) if word and content is not None else content


def _content(fd: int, size: int) -> bytes | None:
    """Read a file, which is short, and close it; return None if it can't be read."""
    try:
        return os.read(fd, size)
    except OSError:  # the group was removed
        return None
    finally:
        os.close(fd)


def _after(content: bytes, word: bytes) -> bytes:
    """Return the text after *word* on the line that begins with it; empty if there is none."""
    return (b"\n" + content).partition(b"\n" + word + b" ")[2].partition(b"\n")[0]


def booted() -> bool:
    """Return whether systemd is this machine's PID 1 (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def controllers(root: Path = Path("/sys/fs/cgroup")) -> frozenset[str]:
    """Return the cgroup controllers of this host: ``memory``, ``pids``, ``cpu``...

    A limit can't be enforced without its controller: systemd ignores such a limit silently, and an OCI runtime refuses
    to start. So the caller must leave out such a limit and report the omission.

    :param root: where the cgroup file systems are mounted; only tests set it.
    """
    try:
        return frozenset((root / "cgroup.controllers").read_text().split())
    except FileNotFoundError:  # version 1: one hierarchy per controller
        hierarchies = os.listdir(root) if root.is_dir() else ()
        there = (one for one in hierarchies if os.path.exists(f"{root}/{one}/cgroup.procs"))
        return frozenset(name for one in there for name in one.split(",") if name != "unified")


def payload_cgroup(layout: Layout, name: str) -> str:
    """Return the cgroup, from the hierarchy's root, of the detached program of the service *name*.

    The path is an OCI ``cgroupsPath``. Under systemd the cgroup lies in the unit's delegated subtree. So the unit's
    limits apply to the program, and the program ends with the unit.
    """
    return payload_cgroups(layout)(name)


def payload_cgroups(layout: Layout) -> Callable[[str], str]:
    """Return :func:`payload_cgroup` for many services of an instance."""
    instance = layout.instance
    if booted():
        return lambda name: f"/{instance}.slice/{layout.service(name)}.service/payload"
    return lambda name: f"/{instance}/{name}"
