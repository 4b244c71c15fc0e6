"""Folders whose content an environment made: walked and removed whole, however deep it is. Nothing uses them meanwhile.

A program may nest folders deeper than any path, any stack and any number of open files can
reach. So none is descended into by its path: one step is made at a time, or what lies two
folders down is moved to the top, under a name of ours. Links are never followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: Path) -> None:
    """Remove *folder* with all that is in it; nothing is done where there is none.

    :raises OSError: when something in it can't be removed.
    """
    try:
        top = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return
    try:
        prefix = f".netspace-{secrets.token_hex(8)}-"
        moved = 0
        todo = _emptied(top)
        while todo:
            name = todo.pop()
            below = os.open(name, _FOLDER, dir_fd=top)
            try:
                for inner in _emptied(below):
                    moved += 1
                    todo.append(f"{prefix}{moved}")
                    os.rename(inner, todo[-1], src_dir_fd=below, dst_dir_fd=top)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    try:
        folder.rmdir()
    except OSError as err:
        if err.errno != errno.EBUSY:  # else somebody's disk is mounted there: it stays, empty
            raise


def _emptied(folder: int) -> list[str]:
    """Remove all from an open folder but the folders in it; return their names."""
    with os.scandir(folder) as found:
        entries = list(found)
    folders = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=folder)
    return folders


def walk(folder: Path, act: Callable[[str, int], None]) -> None:
    """Call *act* with the name of all that is in *folder*, and the open folder that it is in."""

    def look(handle: int) -> list[str]:
        with os.scandir(handle) as found:
            entries = list(found)
        for entry in entries:
            act(entry.name, handle)
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

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
