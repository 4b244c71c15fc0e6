"""Walk through folders that an environment filled, and removal of such folders, at any depth.

No process may use the folders meanwhile. A program may nest folders deeper than a path, a stack or the number of open
files can reach. So no folder is opened by its full path. A walk goes one level at a time. A removal moves folders from
two levels below the top to the top, under new names. Links are never followed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

_SOME = 1000  # names that are read at once
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: Path) -> None:
    """Remove *folder* with all that is in it; do nothing if it doesn't exist.

    :raises OSError: when something in it can't be removed.
    """
    try:
        top = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return
    try:
        prefix = f".netspace-{os.urandom(8).hex()}-"
        moved = 0
        while names := _folders(top):
            for name in names:
                below = os.open(name, _FOLDER, dir_fd=top)
                try:
                    while inner := _folders(below):
                        for one in inner:
                            moved += 1
                            os.rename(one, f"{prefix}{moved}", src_dir_fd=below, dst_dir_fd=top)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    try:
        folder.rmdir()
    except OSError as err:
        if err.errno != errno.EBUSY:  # EBUSY: a disk is mounted there, so the empty folder stays
            raise


def _folders(folder: int) -> list[str]:
    """Remove the files in an open folder; return the names of some folders in it. No name means that it is empty.

    It never reads all names at once: a program can make more names than the host has memory for.
    """
    found: list[str] = []
    again = True
    while again and not found:
        again = False
        os.lseek(folder, 0, os.SEEK_SET)
        with os.scandir(folder) as entries:
            some = list(itertools.islice(entries, _SOME))
        for entry in some:
            if entry.is_dir(follow_symlinks=False):
                found.append(entry.name)
            else:
                again = True
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)
    return found


def walk(folder: Path, act: Callable[[str, int], None]) -> None:
    """Call *act* for each entry below *folder*, with the entry's name and the descriptor of the entry's folder.

    *act* must not add or remove entries. Only names of folders are kept in memory, never all names.
    """

    def look(handle: int) -> list[str]:
        folders = []
        with os.scandir(handle) as found:
            for entry in found:
                act(entry.name, handle)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
        return folders

    here = os.open(folder, _FOLDER)
    try:
        todo = [look(here)]
        while todo:
            step = todo[-1].pop() if todo[-1] else ".."
            if step == "..":
                todo.pop()
                if not todo:
                    break
            there = os.open(step, _FOLDER, dir_fd=here)
            os.close(here)
            here = there
            if step != "..":
                todo.append(look(here))
    finally:
        os.close(here)
