"""The content of an image, in memory: names, modes, owners, links, and the places of file contents.

Every source except a ready erofs file is first read into a tree, so an archive never changes the host's own files. A
tree holds folders, files and symbolic links. It leaves out other members, set-user-id bits, and all extended attributes
except ``user.*``. Equal trees are written as equal bytes, regardless of the order in which they were filled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Protocol

import msgspec

from netspace import text
from netspace.environment.images import bounds
from netspace.environment.images.bounds import Budget
from netspace.errors import NetspaceError

FOLDER, FILE, LINK = "folder", "file", "link"
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_HOPS = 40  # as path_resolution(7)
_MODE = 0o1777  # neither set-user-id nor set-group-id
_CHUNK = 1 << 20
_BLOCK = 512


class Content(Protocol):
    """The content of a file, wherever it is stored."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> Iterator[bytes]:
        """Yield exactly *size* bytes.

        :raises NetspaceError: when the file has become shorter.
        """
        ...


class Piece(msgspec.Struct):
    """A part of an open file."""

    file: IO[bytes]
    offset: int
    size: int

    def read(self, count: int, at: int = 0) -> bytes:
        return os.pread(self.file.fileno(), max(min(count, self.size - at), 0), self.offset + at)

    def chunks(self) -> Iterator[bytes]:
        done = 0
        while done < self.size:
            chunk = self.read(_CHUNK, done)
            if not chunk:
                raise NetspaceError("an image source became shorter while it was read; apply again when it is complete")
            done += len(chunk)
            yield chunk


class Node(msgspec.Struct, eq=False):
    """A folder, a file or a symbolic link. All names of one file (hard links) share its node."""

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    content: Content | None = None
    children: dict[bytes, Node] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        # A link's own mode means nothing.
        self.mode = 0o777 if self.kind == LINK else self.mode & _MODE
        self.mtime = min(max(self.mtime, 0), bounds.TIME)
        self.xattrs = tuple(sorted((name, value) for name, value in self.xattrs if _kept(name)))


class Member(msgspec.Struct):
    """A member of an archive.

    It is a node, another name of a node (``same_as``), or a member of a kind that a tree can't hold (``odd``).
    """

    path: bytes
    node: Node | None = None
    same_as: bytes | None = None
    odd: str = ""

    @property
    def length(self) -> int:
        """Return the number of the member's bytes in memory: names, link target and extended attributes."""
        node = self.node
        own = 0 if node is None else len(node.target) + sum(len(name) + len(value) for name, value in node.xattrs)
        return len(self.path) + len(self.same_as or b"") + own


def _kept(name: bytes) -> bool:
    # security.* and trusted.* grant rights on a host, system.* are ACLs, user.overlay.* and the like belong to
    # overlayfs.
    return name.startswith(b"user.") and not name.startswith((b"user.overlay.", b"user.fuseoverlayfs."))


def printable(name: bytes) -> str:
    """Return a name for a message: bounded, and without control characters."""
    shown = text.printable(name.decode(errors="backslashreplace"))
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


class Tree:
    """The root file system of an image, which is filled member by member.

    :param budget: the limits of the image, and the amounts used so far.
    """

    def __init__(self, budget: Budget) -> None:
        self.root = Node(FOLDER)
        self.left_out: Counter[str] = Counter()
        self._budget = budget

    # -- filling -----------------------------------------------------------------

    def apply(self, members: Iterable[Member], *, layer: bool = False) -> None:
        """Add an archive's members. If several members have the same path, the last one counts.

        :param layer: whether the archive is a layer of an OCI image. A whiteout hides members of lower layers,
            regardless of the whiteout's position in the archive.
        """
        if layer:
            members = list(members)
            for member in members:
                self._white_out(member.path)
            members = [member for member in members if not _is_whiteout(member)]
        for member in members:
            if member.odd:
                self._leave_out(member)
            elif member.same_as is not None:
                self._link(member.path, member.same_as)
            elif member.node is not None:
                self.add(member.path, member.node)

    def add(self, path: bytes, node: Node) -> None:
        """Put *node* at *path*. If both are folders, the content of the existing folder stays.

        :raises NetspaceError: when the path leads out of the image, is too long, or has too many levels.
        """
        parts = self.parts(path)
        if not parts:
            if node.kind != FOLDER:
                raise self._budget.refuse("its root is not a folder")
            _dress(self.root, node)
            return
        folder, depth, length = self._folder(parts[:-1])
        self._measure(path, depth + 1, length + 1 + len(parts[-1]))
        there = folder.children.get(parts[-1])
        if there is not None and there.kind == node.kind == FOLDER:
            _dress(there, node)
        else:
            folder.children[parts[-1]] = node

    def parts(self, path: bytes) -> list[bytes]:
        """Return the names in *path*; a leading ``/`` or ``./`` means the image's root.

        :raises NetspaceError: when the path leads out of the image, or is too long.
        """
        parts = _parts(path)
        if b".." in parts:
            raise self._budget.refuse(f"{printable(path)}: leads out of the image ('..')")
        if len(path) > bounds.PATH or b"\0" in path:
            raise self._budget.refuse(f"{printable(path)}: a path of more than {bounds.PATH} bytes, or with a NUL")
        for part in parts:
            if len(part) > bounds.NAME:
                raise self._budget.refuse(f"{printable(path)}: a name of more than {bounds.NAME} bytes")
        return parts

    def _measure(self, path: bytes, depth: int, length: int) -> None:
        if depth > bounds.DEPTH:
            raise self._budget.refuse(f"{printable(path)}: more than {bounds.DEPTH} folders deep")
        if length > bounds.PATH:
            raise self._budget.refuse(f"{printable(path)}: a path of more than {bounds.PATH} bytes")

    def _folder(self, parts: list[bytes]) -> tuple[Node, int, int]:
        """Return the folder at *parts*, its depth and the length of its path. Missing folders are made."""
        trail = self._walk(parts, make=True)
        assert trail is not None
        names, node = trail
        if node.kind != FOLDER:
            raise self._budget.refuse(f"{printable(b'/'.join(parts))}: is not a folder, but has members")
        return node, len(names), sum(len(name) + 1 for name in names)

    def _walk(self, parts: list[bytes], *, make: bool = False) -> tuple[list[bytes], Node] | None:
        """Follow *parts* and symbolic links as a process inside would; return the resolved names and the node."""
        trail, names = [self.root], list[bytes]()
        todo = parts[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"..":  # from a link's target
                if names:
                    trail.pop()
                    names.pop()
                continue
            child = trail[-1].children.get(part)
            if child is None and make:
                child = trail[-1].children[part] = Node(FOLDER)
                self._budget.take_entry()
                self._measure(b"/".join(parts), len(names) + 1, sum(len(name) + 1 for name in (*names, part)))
            elif child is None or (child.kind == FILE and todo):
                if not make:
                    return None
                raise self._budget.refuse(f"{printable(b'/'.join(parts))}: lies below a file")
            if child.kind == LINK:
                hops += 1
                self._budget.take_lookup()
                further = _parts(child.target)
                if hops > _HOPS or len(further) > bounds.DEPTH:
                    if not make:
                        return None
                    raise self._budget.refuse(f"{printable(b'/'.join(parts))}: behind too many symbolic links")
                if child.target.startswith(b"/"):
                    trail, names = [self.root], []
                todo.extend(reversed(further))
                continue
            trail.append(child)
            names.append(part)
        return names, trail[-1]

    def find(self, path: bytes) -> Node | None:
        """Return the node that a process inside would find at *path*, after following links; None if there is none."""
        found = self._walk(_parts(path))
        return found[1] if found is not None else None

    def _link(self, path: bytes, target: bytes) -> None:
        parts = self.parts(target)
        found = self._walk(parts[:-1]) if parts else None
        node = found[1].children.get(parts[-1]) if found is not None and found[1].kind == FOLDER else None
        if node is None or node.kind == FOLDER:
            raise self._budget.refuse(
                f"{printable(path)}: a hard link to {printable(target)}, which is not an earlier file"
            )
        self.add(path, node)

    def _leave_out(self, member: Member) -> None:
        self.left_out[member.odd] += 1
        self._remove(self.parts(member.path))

    def _remove(self, parts: list[bytes]) -> None:
        found = self._walk(parts[:-1]) if parts else None
        if found is not None and found[1].kind == FOLDER:
            found[1].children.pop(parts[-1], None)

    def _white_out(self, path: bytes) -> None:
        parts = self.parts(path)
        if not parts or not parts[-1].startswith(_WHITEOUT):
            return
        if parts[-1] == _OPAQUE:
            found = self._walk(parts[:-1])
            if found is not None:
                found[1].children.clear()
        elif not parts[-1].startswith(_AUFS):
            name = parts[-1][len(_WHITEOUT) :]
            if name in (b"", b".", b".."):
                raise self._budget.refuse(f"{printable(path)}: a whiteout that names no file")
            self._remove([*parts[:-1], name])

    # -- reading -----------------------------------------------------------------

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Yield every path with its node in a fixed order; a folder comes before its content."""
        stack = [(b".", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            below = b"" if path == b"." else path + b"/"
            stack.extend((below + name, node.children[name]) for name in sorted(node.children, reverse=True))

    def write(self, write: Callable[[bytes], object]) -> tuple[int, int]:
        """Write the tree as a tar archive. Equal trees give equal bytes.

        :return: the number of entries, and the bytes of content.
        """
        import tarfile  # imported here, since callers that only look at a source load this module, too

        first: dict[int, bytes] = {}
        entries = total = 0
        for path, node in self.walk():
            entries += 1
            info = tarfile.TarInfo(_text(path))
            info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime
            if node.kind == FILE and id(node) in first:
                info.type, info.linkname = tarfile.LNKTYPE, _text(first[id(node)])
            elif node.kind == FILE:
                first[id(node)] = path
                info.size = node.content.size if node.content is not None else 0
            elif node.kind == LINK:
                info.type, info.linkname = tarfile.SYMTYPE, _text(node.target)
            else:
                info.type = tarfile.DIRTYPE
            if info.type != tarfile.LNKTYPE:
                info.pax_headers = {f"SCHILY.xattr.{_text(name)}": _text(value) for name, value in node.xattrs}
            write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            if info.size and node.content is not None:
                for chunk in node.content.chunks():
                    write(chunk)
                write(bytes(-info.size % _BLOCK))
                total += info.size
        write(bytes(2 * _BLOCK))
        return entries, total

    def notes(self) -> tuple[str, ...]:
        """Return notes on the omitted members, by kind."""
        return tuple(f"left out: {count} {kind}" for kind, count in sorted(self.left_out.items()))


def _is_whiteout(member: Member) -> bool:
    parts = _parts(member.path)
    return bool(parts) and parts[-1].startswith(_WHITEOUT)


def _dress(folder: Node, like: Node) -> None:
    """Set the mode, owner, time and attributes of *folder* to those of *like*."""
    folder.mode, folder.uid, folder.gid = like.mode, like.uid, like.gid
    folder.mtime, folder.xattrs = like.mtime, like.xattrs


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
