"""``dir:/srv/root``: a folder with the files of a root file system. The image gets copies of the files.

All file times become 0, so that copies of one folder give the same image on every host. This module never follows
links, so a user who can write to the folder can't get other files of the host copied.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from netspace.environment.images import bounds, sources
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import FILE, FOLDER, LINK, Member, Node, Tree
from netspace.errors import NetspaceError

_ODD = {stat.S_IFCHR: "device nodes", stat.S_IFBLK: "device nodes", stat.S_IFIFO: "named pipes"}
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def fingerprint(location: str) -> str:
    state = hashlib.sha256()
    for path, info in _walk(location):
        state.update(
            os.fsencode(path)
            + f"\0{info.st_mode}:{info.st_uid}:{info.st_gid}:{info.st_size}:{info.st_ino}"
            f":{info.st_mtime_ns}:{info.st_ctime_ns}\0".encode()
        )
    return "walk:" + state.hexdigest()


def identity(location: str) -> str:
    """Return the identity of the folder's content.

    The identity depends on names, types, modes, owners, contents and ``user.*`` attributes, but not on file times.
    """
    state = hashlib.sha256()
    _tree(location, Budget(f"dir:{location}")).write(state.update)
    return "tree:" + state.hexdigest()


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    budget = Budget(f"dir:{location}")
    tree = _tree(location, budget)
    sources.pack(tree, target, budget)
    return sources.Defaults(notes=tree.notes())


def listed(location: str, scratch: Path) -> tuple[Tree, sources.Defaults]:
    return _tree(location, Budget(f"dir:{location}")), sources.Defaults()


class _File(msgspec.Struct, frozen=True):
    """The content of a file. Reading fails if the file has changed since it was listed."""

    location: str
    path: str
    info: os.stat_result

    @property
    def size(self) -> int:
        return self.info.st_size

    def chunks(self) -> Iterator[bytes]:
        done = 0
        with os.fdopen(_open(self.location, self.path), "rb", 0) as stream:
            found = os.fstat(stream.fileno())
            if _same(found) != _same(self.info):
                raise self._changed()
            while done < self.size:
                chunk = stream.read(min(_CHUNK, self.size - done))
                if not chunk:
                    raise self._changed()
                done += len(chunk)
                yield chunk

    def _changed(self) -> NetspaceError:
        return NetspaceError(
            f"image source {self.location}: {self.path} changed while it was read; apply again when it is complete"
        )


def _same(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _open(location: str, path: str) -> int:
    """Open a file below the folder. Fail if a part of the path has become a link."""
    folder = os.open(location, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    *parents, name = path.split("/")
    try:
        for parent in parents:
            below = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _FLAGS | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _tree(location: str, budget: Budget) -> Tree:
    def members() -> Iterator[Member]:
        first: dict[tuple[int, int], bytes] = {}
        for path, info in _walk(location):
            budget.take_entry()
            name, kind = os.fsencode(path), stat.S_IFMT(info.st_mode)
            make = functools.partial(
                Node,
                mode=stat.S_IMODE(info.st_mode),
                uid=info.st_uid,
                gid=info.st_gid,
                xattrs=_attributes(os.path.join(location, path), budget),
            )
            if kind == stat.S_IFREG and info.st_nlink > 1 and (info.st_dev, info.st_ino) in first:
                yield Member(name, same_as=first[info.st_dev, info.st_ino])
            elif kind == stat.S_IFREG:
                first[info.st_dev, info.st_ino] = name
                budget.take_bytes(info.st_size)
                yield Member(name, make(FILE, content=_File(location, path, info)))
            elif kind == stat.S_IFDIR:
                yield Member(name, make(FOLDER))
            elif kind == stat.S_IFLNK:
                target = os.readlink(os.fsencode(os.path.join(location, path)))
                yield Member(name, make(LINK, target=target))
            else:
                yield Member(name, odd=_ODD.get(kind, "sockets"))

    def counted() -> Iterator[Member]:
        for member in members():
            budget.take_names(member.length)
            yield member

    tree = Tree(budget)
    try:
        tree.apply(counted())
    except OSError as err:
        raise NetspaceError(f"image source {err.filename or location}: {err.strerror}") from err
    return tree


def _attributes(path: str, budget: Budget) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno == errno.ENOTSUP:
            return ()
        raise
    for name in names:
        if name.startswith("user."):
            if "=" in name:
                raise budget.refuse(f"{path}: an extended attribute with '=' in its name")
            found.append((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)))
    if sum(len(name) + len(value) for name, value in found) > bounds.HEADER:
        raise budget.refuse(f"{path}: more than {bounds.HEADER} bytes of extended attributes")
    return tuple(found)


def _walk(location: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every entry below *location* in a fixed order, with its relative path. Links are not followed."""
    try:
        yield "", os.stat(location)
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(os.path.join(location, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                path = os.path.join(folder, entry.name)
                info = entry.stat(follow_symlinks=False)
                yield path, info
                if stat.S_ISDIR(info.st_mode):
                    stack.append(path)
    except OSError as err:
        raise NetspaceError(f"image source {err.filename or location}: {err.strerror}") from err
