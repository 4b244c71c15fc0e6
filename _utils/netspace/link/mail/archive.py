"""Archive of all mail of netspace's own broker: the format of a backup's file.

The file is a tar archive. Its first member has the instance, RabbitMQ's version and the name keys of the data; the
node's data follow. The last member has a digest of all others, because tar itself neither checks contents nor notices
that members are missing. An archive is accepted only if the file belongs to root and is complete. It must be from this
instance and from a RabbitMQ that isn't newer than the installed one. It may contain only folders and regular files.

An attacker who has taken over the broker can change its data at any moment, also by processes that outlive the node. So
the data are read by descriptors, without following a link, and extracted in a folder that only root can enter.

Nothing here stops or starts the broker, or changes its data (:mod:`netspace.link.mail.backup`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pwd
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import node, versions
from netspace.link.topology import names

ABOUT = "about.json"
END = "end.json"
DATA = "mnesia"
"""The folder of RabbitMQ's data below the node's own, and in the archive."""

MAX_ABOUT = 1024**2  # it contains a name key for each other host
MAX_MEMBERS = 200_000
MAX_DEPTH = 32  # levels of nested folders; each takes a descriptor
RESERVE = 256 * 1024**2
"""Bytes that stay free on the disk: with less than 200 MB, the broker accepts no messages."""


@contextlib.contextmanager
def opened_folder(path: Path | str, within: int | None = None) -> Iterator[int]:
    """Open a folder, without following a link; yield its descriptor.

    :param within: the descriptor of the folder that contains it; None: *path* is a full path.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except OSError as err:
        if err.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NetspaceError(
                f"the broker's data: expected a folder that belongs to the broker's user: {path}"
            ) from err
        raise
    try:
        yield handle
    finally:
        os.close(handle)


# -- making one --------------------------------------------------------------------


class _Digest:
    """Digest of an archive: the number of members, and a SHA-256 of their names, kinds, modes, sizes and contents.

    The object is also a stream: :meth:`read` reads a member's content from *stream* and adds it to the digest.
    """

    def __init__(self) -> None:
        self.members = 0
        self.stream: IO[bytes] = io.BytesIO()
        self._hash = hashlib.sha256()

    def of(self, member: tarfile.TarInfo, stream: IO[bytes]) -> _Digest:
        told = [member.name, member.type.decode("latin-1"), member.mode, member.size]
        self._hash.update(json.dumps(told).encode())
        self.members += 1
        self.stream = stream
        return self

    def read(self, size: int = -1) -> bytes:
        part = self.stream.read(size)
        self._hash.update(part)
        return part

    def result(self) -> dict[str, Any]:
        return {"members": self.members, "sha256": self._hash.hexdigest()}


def pack(layout: Layout, aside: Path) -> None:
    """Write the mail of a stopped broker to the file *aside*, which only root can read.

    :raises NetspaceError: the disk has too little room, or the broker's data contain something that RabbitMQ doesn't
        make.
    """
    told = {"netspace": 1, "instance": layout.instance, "rabbitmq": _installed(), "names": names.exported(layout)}
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as stream, opened_folder(layout.broker / "data") as data:
        with opened_folder(DATA, data) as folder:
            needed = sum(member.size + 2 * tarfile.BLOCKSIZE for member, _ in _found(folder, DATA))
            if shutil.disk_usage(aside.parent).free < needed + RESERVE:
                raise NetspaceError(
                    f"{aside.parent} has no room for {needed // 1024**2 + 1} MiB of mail beside a reserve of "
                    f"{RESERVE // 1024**2} MiB; make room there"
                )
            digest = _Digest()
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add_json(archive, ABOUT, told, digest)
                for member, content in _found(folder, DATA):
                    archive.addfile(member, digest.of(member, content))
                _add_json(archive, END, digest.result())
        stream.flush()
        os.fsync(stream.fileno())


def _add_json(archive: tarfile.TarFile, name: str, value: Any, digest: _Digest | None = None) -> None:
    content = json.dumps(value).encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    stream = io.BytesIO(content)
    archive.addfile(member, stream if digest is None else digest.of(member, stream))


def _found(folder: int, name: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield the open folder *folder* and everything in it as members of an archive, each with its content.

    The folder's owner may change the content meanwhile. So each file is opened without following a link or waiting, and
    checked by its descriptor.

    :param folder: the folder's descriptor.
    :param name: the folder's name in the archive.
    :raises NetspaceError: the folder contains something that RabbitMQ doesn't make.
    """
    owner = pwd.getpwnam(node.USER).pw_uid
    number = 2  # the first and the last member

    def within(folder: int, path: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
        nonlocal number
        number += 1
        if number > MAX_MEMBERS or path.count("/") > MAX_DEPTH:
            raise NetspaceError(f"the broker's data: too many files or folders: {path!r:.80}")
        yield _member(path, tarfile.DIRTYPE), io.BytesIO()
        for entry in sorted(os.listdir(folder)):
            inner = f"{path}/{entry}"
            try:
                handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            except OSError as err:
                if err.errno in (errno.ELOOP, errno.ENXIO):
                    raise _foreign(inner) from err
                raise
            with contextlib.ExitStack() as closed:
                info = os.fstat(handle)
                if stat.S_ISDIR(info.st_mode) and info.st_uid == owner:
                    closed.callback(os.close, handle)
                    yield from within(handle, inner)
                else:
                    content = closed.enter_context(os.fdopen(handle, "rb"))
                    if not stat.S_ISREG(info.st_mode) or info.st_uid != owner or info.st_nlink != 1:
                        raise _foreign(inner)
                    number += 1
                    yield _member(inner, tarfile.REGTYPE, info.st_size), content

    return within(folder, name)


def _foreign(path: str) -> NetspaceError:
    return NetspaceError(
        f"the broker's data: {path!r:.200} is not a folder or a regular file of the user {node.USER}, "
        "without a hard link; RabbitMQ makes no others, so find out who made it, and remove it"
    )


def _member(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    """Return an archive's member, without owner and times. The restoration sets the owner."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    member.mode = 0o700 if kind == tarfile.DIRTYPE else 0o600
    return member


def _installed() -> list[int]:
    return list(versions.server())


# -- reading one -------------------------------------------------------------------


def unpack(layout: Layout, source: Path, aside: Path) -> tuple[int, dict[str, Any]]:
    """Check the archive and extract its data to *aside*, owned by the node's user.

    :return: the archive's size in bytes, and the name keys in it.
    :raises NetspaceError: the archive can't be accepted.
    """
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise NetspaceError(f"{source}: expected a file that belongs to root and that nobody else can write")
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                members, digest = _members(archive, source), _Digest()
                keys = _acceptable(layout, archive, next(members, None), source, digest)
                _extract(archive, members, aside, source, digest)
        except (tarfile.TarError, EOFError, ValueError, FileExistsError, FileNotFoundError, NotADirectoryError) as err:
            raise NetspaceError(f"{source}: it is not an archive of mail: {err}") from err
        return info.st_size, keys


def _members(archive: tarfile.TarFile, source: Path) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(archive):
        if number > MAX_MEMBERS:
            raise NetspaceError(f"{source}: more than {MAX_MEMBERS} files")
        yield member


def _acceptable(
    layout: Layout, archive: tarfile.TarFile, first: tarfile.TarInfo | None, source: Path, digest: _Digest
) -> dict[str, Any]:
    """Check that an archive is of this instance and of no newer RabbitMQ; return the name keys in it.

    :raises NetspaceError: the archive can't be accepted.
    """
    about: Any = None
    if first is not None and first.name == ABOUT and first.isreg() and first.size <= MAX_ABOUT:
        stream = archive.extractfile(first)
        try:
            about = json.loads(digest.of(first, stream).read()) if stream is not None else None
        except ValueError:
            about = None
    if not isinstance(about, dict) or about.get("netspace") != 1 or not isinstance(about.get("rabbitmq"), list):
        raise NetspaceError(f"{source}: it is not an archive of mail; `netspace_link.backup` makes one")
    if about.get("instance") != layout.instance:
        raise NetspaceError(
            f"{source}: its instance is {about.get('instance')!r:.40}, but this one is {layout.instance!r}"
        )
    version = about["rabbitmq"]
    if not all(type(part) is int for part in version) or version > _installed():
        told = ".".join(map(str, version))
        raise NetspaceError(f"{source}: made with RabbitMQ {told:.40}; install that version or a newer one")
    keys: Any = about.get("names")
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise NetspaceError(f"{source}: it lacks the keys for the broker's names; take another backup")
    if keys:
        try:
            names.check(layout, keys)
        except NetspaceError as err:
            raise NetspaceError(
                f"{source}: its keys for the names of queues can't be used; take another backup"
            ) from err
    versions.check_origin(versions.server(), tuple(version), source)
    return keys


def _extract(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], aside: Path, source: Path, digest: _Digest
) -> None:
    """Extract the data to *aside*, which is in a folder that only root can enter.

    :raises NetspaceError: the archive isn't whole, or contains something other than a node's data.
    """
    user = pwd.getpwnam(node.USER)
    free = shutil.disk_usage(aside.parent).free - RESERVE
    aside.mkdir(mode=0o700)
    os.chown(aside, user.pw_uid, user.pw_gid, follow_symlinks=False)
    for member in members:
        if member.name == END and member.isreg():
            _whole(archive, member, next(members, None), source, digest)
            break
        parts = PurePosixPath(member.name).parts
        if parts[:1] != (DATA,) or ".." in parts or not (member.isreg() or member.isdir()):
            raise NetspaceError(f"{source}: {member.name!r:.80} is not part of an archive of mail")
        target = aside.joinpath(*parts[1:])
        if member.isdir():
            digest.of(member, io.BytesIO())
            if target == aside:
                continue
            target.mkdir(mode=0o700)
        else:
            free -= member.size
            content = archive.extractfile(member)
            if free < 0 or content is None:
                raise NetspaceError(f"{source}: {aside.parent} has no room for its content; make room there")
            with open(target, "xb") as stream:
                shutil.copyfileobj(digest.of(member, content), stream)
                os.fchmod(stream.fileno(), 0o600)
        os.chown(target, user.pw_uid, user.pw_gid, follow_symlinks=False)
    else:
        raise NetspaceError(f"{source}: it is cut off or damaged: its end is missing; take another copy")
    files.sync_all(aside)


def _whole(
    archive: tarfile.TarFile, end: tarfile.TarInfo, more: tarfile.TarInfo | None, source: Path, digest: _Digest
) -> None:
    """Check an archive's last member: it has the digest of all members before it, and nothing follows."""
    told: Any = None
    content = archive.extractfile(end)
    if more is None and content is not None and end.size <= MAX_ABOUT:
        with contextlib.suppress(ValueError):
            told = json.loads(content.read())
    if told != digest.result():
        raise NetspaceError(f"{source}: it is damaged: its content doesn't match its digest; take another copy")
