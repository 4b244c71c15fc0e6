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


def file_value(path: str, word: bytes = b"") -> bytes | None:
    """Return a control group's file, or the text after *word* on its line; None if the file can't be read.

    :param word: the first word of a line, as in ``memory.events``. If no line begins with this word, the result is
        empty.
    """
    content = _content(path, None)
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
        start = len(shared)
        for path in cgroups:
            content = _content(f"{path[start:]}/{file}", folder)
            yield _after(content, word) if word and content is not None else content


def _content(path: str, folder: int | None) -> bytes | None:
    """Return the content of a file, which is short; None if it can't be read."""
    try:
        fd = os.open(path, _READ, dir_fd=folder)
    except OSError:
        return None
    try:
        return os.read(fd, 4096)
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
        return frozenset(
            name for path in root.glob("*/cgroup.procs") for name in path.parent.name.split(",") if name != "unified"
        )


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
