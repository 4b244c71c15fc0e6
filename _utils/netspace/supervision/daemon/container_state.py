"""Deletion of an ended container, as by ``crun delete --force``, but without starting crun.

Starting crun costs four milliseconds of processor time, but deleting a container without processes takes only a few
rmdir(2) and unlink(2). This module deletes a container only if all of this is true: crun's status file says that the
process has ended, and names the service's control group; the container has no hooks; the kernel removes the group in
every hierarchy, which proves that the group is empty. This module leaves every other container to crun. If this process
is killed between two steps, crun can delete the rest. This module kills no process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence

from netspace.supervision import process

_CGROUPS = "/sys/fs/cgroup"
_LARGEST = 4 * 1024 * 1024
# The files that crun keeps for a container. crun removes the status first, and so does this module: crun ignores a
# container without a status.
_FILES = ("status", "config.json", "seccomp.bpf", "exec.fifo")
_UNUSUAL = (b'"hooks"', b'"intelRdt"')


def folder(argv: Sequence[str]) -> str | None:
    """Return crun's folder of the container that *argv* deletes; None if *argv* is another command."""
    if len(argv) < 6 or os.path.basename(argv[-6]) != "crun" or argv[-5] != "--root":
        return None
    if tuple(argv[-3:-1]) != ("delete", "--force") or "/" in argv[-1] or argv[-1].startswith("."):
        return None
    return f"{argv[-4]}/{argv[-1]}"


def unknown(argv: Sequence[str]) -> bool:
    """Return whether *argv* deletes a container of which crun has no state. Such a command can be skipped."""
    path = folder(argv)
    return path is not None and not os.path.lexists(path)


def forget(argv: Sequence[str], cgroup: str) -> bool:
    """Delete the container that *argv* names, if the module's conditions hold; return whether it was deleted.

    A deleted container has no process left, because its control group was empty.

    :param cgroup: the service's control group, from the hierarchy's root.
    """
    path = folder(argv)
    if path is None or not _is_plain(path, cgroup):
        return False
    removed = False
    for root in _hierarchies():
        try:
            os.rmdir(root + cgroup)
            removed = True
        except FileNotFoundError:
            pass
        except OSError:
            return False
    if not removed:
        return False
    try:
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except OSError:
        return False
    return True


def _is_plain(path: str, cgroup: str) -> bool:
    try:
        if not set(os.listdir(path)) <= set(_FILES):
            return False
        status = json.loads(_read(f"{path}/status"))
        config = _read(f"{path}/config.json")
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(status, dict) or any(word in config for word in _UNUSUAL):
        return False
    pid, ticks = status.get("pid"), status.get("process-start-time")
    return (
        type(pid) is int
        and type(ticks) is int
        and not process.alive(pid, ticks)
        and status.get("cgroup-path") == cgroup
        and status.get("systemd-cgroup") is False
    )


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _LARGEST)
    finally:
        os.close(fd)


def _hierarchies() -> Iterator[str]:
    """Yield the folders where control groups are mounted: one for version 2, one per hierarchy for version 1."""
    if os.path.exists(f"{_CGROUPS}/cgroup.controllers"):
        yield _CGROUPS
        return
    with os.scandir(_CGROUPS) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield entry.path
