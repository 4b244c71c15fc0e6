"""Copy of this library on the host's disk, for processes that must run without Salt.

Units and the supervisor run ``python -m netspace`` after a reboot, when there may be no Salt cache, no checkout and no
master. They run this copy with Salt's interpreter, whose site-packages hold the dependencies.

``<state>/lib/<digest>/`` is a version: the package's ``.py`` files, and a ``__main__.py`` that starts it. The symlink
``<state>/lib/current`` points to the version in use. A version is complete before the symlink points to it. This module
doesn't run the copy.

The supervisor's long-lived process imports this module. So modules that are only needed for writing are imported inside
functions.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from netspace.errors import MissingError
from netspace.layout import Layout

DEPENDENCIES = ("cryptography", "dns", "jeepney", "joserfc", "msgspec", "pyroute2")

STARTER = '''"""Runs the netspace library beside this file. Written by netspace; changes are lost."""

import sys

# Where the dependencies are that are not the interpreter's own (Salt's extras, a Salt-synced tree).
for folder in {folders!r}:
    if folder not in sys.path:
        sys.path.append(folder)

from netspace.__main__ import main

sys.exit(main())
'''


@functools.cache
def source() -> Path:
    """Return the folder of the running library."""
    return Path(__file__).resolve().parent


def command(layout: Layout, *arguments: str) -> tuple[str, ...]:
    """Return the argument vector that runs ``python -m netspace ARGUMENTS`` from the copy.

    The command is isolated (``-I``): the caller's environment variables, its folder and a user's site-packages don't
    influence which modules Python loads.

    :raises MissingError: the running interpreter has no path, because it is embedded in another program.
    """
    if not sys.executable:
        raise MissingError("the path of the Python interpreter", "run Salt by a Python that knows its own path")
    instance = () if layout.instance == "netspace" else ("--instance", layout.instance)
    return (sys.executable, "-I", str(layout.library / "current"), *instance, *arguments)


def installed(layout: Layout) -> str:
    """Return the digest of the copy in use; empty if there is none."""
    try:
        return os.readlink(layout.library / "current")
    except OSError:
        return ""


def coming(layout: Layout) -> str:
    """Return the digest that the copy would have after :func:`install`. Changes nothing."""
    return _compared(layout).digest


def install(layout: Layout) -> bool:
    """Make the copy equal to the running library; return whether anything was written."""
    import shutil

    before = installed(layout)
    digest, contents, stamp, equal = _compared(layout)
    if equal:
        if contents:
            _note(layout, digest, stamp)
        return False
    layout.library.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = layout.library / f".{digest}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    for name, content in contents.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(content)
    os.sync()  # sync once for all files: after a power cut, the symlink below must not exist without them
    shutil.rmtree(layout.library / digest, ignore_errors=True)
    os.rename(aside, layout.library / digest)
    link = layout.library / f".current.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(digest)
    os.rename(link, layout.library / "current")
    _note(layout, digest, stamp)
    # Keep the previous version: a process that runs it may still import from it.
    for entry in os.listdir(layout.library):
        if entry not in (digest, before, "current"):
            path = layout.library / entry
            if path.is_symlink():  # a process was killed before the rename
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
    return True


class _Compared(NamedTuple):
    """The running library, compared with the copy in use.

    :param digest: its digest.
    :param contents: its files, if they had to be read.
    :param stamp: the stamps of its files (:func:`_files`), if its files were read.
    :param equal: whether the copy in use is there, and is equal.
    """

    digest: str
    contents: Mapping[str, bytes] = {}
    stamp: str = ""
    equal: bool = True


def _compared(layout: Layout) -> _Compared:
    """Compare the running library with the copy in use, and read its files only if their stamps changed."""
    global _known
    before, origin = installed(layout), source()
    if layout.library in origin.parents:
        return _Compared(before)  # this process runs the copy
    there = (layout.library / before / "__main__.py").exists()
    folders, known = _known
    if there and known == before and _unchanged(folders):
        return _Compared(before)
    files, folders, stamp = _files(str(origin))
    if there and stamp and _noted(layout, before) == stamp:
        _known = (folders, before)
        return _Compared(before)
    contents = {**_contents(files), "__main__.py": STARTER.format(folders=_folders()).encode()}
    digest = _digest(contents)
    _known = (folders, digest)
    return _Compared(digest, contents, stamp, there and digest == before)


def remove(layout: Layout) -> None:
    """Remove the copy and all its versions."""
    import shutil

    shutil.rmtree(layout.library, ignore_errors=True)


# The files' stamps of the library that the copy was made of, or compared with, as a digest.
_SOURCE = "source"
# The names of folders in which pip, Debian and Salt have packages.
_PACKAGES = ("site-packages", "dist-packages", "extras-")
# A file system counts time in steps of at most 10 ms: a younger file (seconds) may change again and keep its stamp.
_SETTLED = 0.05


def _noted(layout: Layout, version: str) -> str:
    try:
        return (layout.library / version / _SOURCE).read_text()
    except (OSError, ValueError):
        return ""


def _note(layout: Layout, version: str, stamp: str) -> None:
    """Record the source's stamps (inodes, sizes, times), so that the next process need not read all files.

    An empty stamp isn't recorded. The file is replaced by a rename, without a sync: if it is damaged, the next process
    only reads all files.
    """
    if stamp:
        aside = layout.library / version / f".{_SOURCE}.new"  # the next run replaces that of a killed one
        with contextlib.suppress(OSError):
            aside.write_text(stamp)
            aside.rename(layout.library / version / _SOURCE)


# The folders of the last digest, with their modification times, and the digest. This process notices a replaced file,
# because its folder's time changes. Only the next process and ``netspace.refresh`` notice a file that is edited in
# place.
_known: tuple[Mapping[str, int], str] = ({}, "")


def _unchanged(folders: Mapping[str, int]) -> bool:
    try:
        return bool(folders) and all(os.stat(path).st_mtime_ns == time for path, time in folders.items())
    except OSError:
        return False


def _files(origin: str) -> tuple[dict[str, str], dict[str, int], str]:
    """Return three values about the running library.

    First, the paths of its files, by their names in the copy. Second, the modification times of its folders. Third, a
    digest of all files' paths, inodes, sizes and times; it is empty if a file changed less than ``_SETTLED`` seconds
    ago, because such a file may change again with the same time.
    """
    import hashlib
    import time

    found: dict[str, str] = {}
    stamps: list[tuple[object, ...]] = []
    newest = 0
    folders: dict[str, int] = {}
    todo = [(origin, "netspace")]
    while todo:
        folder, inside = todo.pop()
        folders[folder] = os.stat(folder).st_mtime_ns
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}"
                if entry.name.endswith(".py") and entry.is_file():
                    found[name] = entry.path
                    info = entry.stat()
                    newest = max(newest, info.st_mtime_ns, info.st_ctime_ns)
                    stamps.append((entry.path, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
                elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, name))
    settled = newest < time.time_ns() - int(_SETTLED * 1e9)
    # A package that is installed elsewhere gives the starter another folder to name.
    packages = [(path, _changed(path)) for path in sys.path if os.path.basename(path).startswith(_PACKAGES)]
    text = repr((sorted(stamps), sys.executable, packages))
    return found, folders, hashlib.sha256(text.encode()).hexdigest() if settled else ""


def _changed(path: str) -> int:
    """Return when a folder was changed, in nanoseconds; 0 if it doesn't exist."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _contents(files: Mapping[str, str]) -> dict[str, bytes]:
    found = {}
    for name, path in files.items():
        with open(path, "rb", buffering=0) as stream:
            found[name] = stream.readall()
    return found


def _digest(contents: Mapping[str, bytes]) -> str:
    import hashlib

    summary = hashlib.sha256()
    for name in sorted(contents):
        summary.update(f"{name}\0{len(contents[name])}\0".encode())
        summary.update(contents[name])
    return summary.hexdigest()[:32]


def _folders() -> list[str]:
    """Return the folders of the import path that hold the dependencies."""
    import importlib.util

    found = []
    for name in DEPENDENCIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folder = str(Path(spec.origin).parent.parent)
            if folder not in found:
                found.append(folder)
    return found
