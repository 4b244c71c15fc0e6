"""Backup and restoration of all mail of netspace's own broker, in one file. The broker is down for some seconds.

The file is a tar archive. Its first member has the instance, RabbitMQ's version and the name keys of the data; the
node's data follow. A restoration checks the whole archive before it stops the broker: the file must belong to root, be
of this instance and of no newer RabbitMQ, and contain only folders and regular files.

A restoration exchanges the data by one rename. So a run that is killed leaves either the old mail or the restored mail.
The next apply then starts the broker if needed, and renames queues.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pwd
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from netspace import files, paths
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import broker as node
from netspace.link import names
from netspace.link.record import read
from netspace.spec.types import LocalBroker
from netspace.supervision import Supervisor

ABOUT = "about.json"
DATA = "mnesia"
"""The folder of RabbitMQ's data below the node's own, and in the archive."""

MAX_ABOUT = 1024**2  # it contains a name key for each other host
MAX_MEMBERS = 200_000
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_VERSION = re.compile(r"rabbitmq_server-(\d+)\.(\d+)\.(\d+)")


def save(layout: Layout, supervisor: Supervisor, target: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Write the broker's mail to *target*; return ``file`` and ``size``. The broker is down meanwhile.

    :raises NetspaceError: netspace has no broker of its own here, or *target* can't be written. The broker runs again.
    """
    with files.refusals_told(), files.locked(layout.lock):
        spec = _own(layout)
        _writable(target)
        aside = target.with_name(f".{target.name}.new")
        try:
            _down(supervisor)
            _pack(layout, aside)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            node.start(layout, spec, supervisor, progress)
        aside.replace(target)
        files.sync_all(target.parent)
        return {"file": str(target), "size": target.stat().st_size}


def load(layout: Layout, supervisor: Supervisor, source: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Replace the broker's mail by the mail in *source*; return ``file`` and ``size``. **Its present mail is lost.**

    The record of links stays. The next apply removes undeclared objects from the restored data.

    :raises NetspaceError: netspace has no broker of its own here, or *source* can't be used. Nothing changes then.
    """
    with files.refusals_told(), files.locked(layout.lock):
        spec = _own(layout)
        data = layout.broker / "data" / DATA
        aside = data.with_name(f"{DATA}.new")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            size, keys = _unpack(layout, source, aside)
            try:
                _down(supervisor)
                if keys:
                    names.adopt(layout, keys)
                data.mkdir(mode=0o700, exist_ok=True)
                _exchange(aside, data)
            finally:
                node.start(layout, spec, supervisor, progress)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return {"file": str(source), "size": size}


def _own(layout: Layout) -> LocalBroker:
    record = read(layout)
    if not isinstance(record.broker, LocalBroker) or not record.links:
        raise NetspaceError(
            "there is no broker of netspace's own on this host; apply its links first, and back up a cluster of yours "
            "by its own means"
        )
    node.available()
    return record.broker


def _down(supervisor: Supervisor) -> None:
    if failed := supervisor.stop([node.NODE]):
        raise NetspaceError(f"the broker can't be stopped: {'; '.join(failed.values())}")


# -- making one --------------------------------------------------------------------


def _writable(target: Path) -> None:
    if not target.is_absolute() or ".." in target.parts:
        raise NetspaceError(f"{target}: expected an absolute path")
    if found := paths.loose(target):
        raise NetspaceError(
            f"{target}: others of this host can write to {found}; name a file in a folder of root's alone"
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _pack(layout: Layout, aside: Path) -> None:
    told = {"netspace": 1, "instance": layout.instance, "rabbitmq": _installed(), "names": names.exported(layout)}
    about = json.dumps(told).encode()
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            first = tarfile.TarInfo(ABOUT)
            first.size = len(about)
            archive.addfile(first, io.BytesIO(about))
            archive.add(layout.broker / "data" / DATA, DATA, filter=_plain)
        stream.flush()
        os.fsync(stream.fileno())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the member without its owner; None: it is neither a folder nor a regular file.

    The restoration sets the owner, and refuses other kinds of members.
    """
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isreg() or member.isdir() else None


def _installed() -> list[int]:
    found = [_VERSION.fullmatch(path.name) for path in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")]
    return max(([int(part) for part in one.groups()] for one in found if one), default=[])


# -- reading one -------------------------------------------------------------------


def _unpack(layout: Layout, source: Path, aside: Path) -> tuple[int, dict[str, Any]]:
    """Check the archive and extract its data to *aside*, owned by the node's user.

    :return: the archive's size, and the name keys in it.
    """
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise NetspaceError(f"{source}: expected a file of root's that nobody else can write")
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                members = _members(archive, source)
                keys = _acceptable(layout, archive, next(members, None), source)
                _extract(archive, members, aside, source)
        except (tarfile.TarError, EOFError, UnicodeError) as err:
            raise NetspaceError(f"{source}: it is no archive of mail: {err}") from err
        return info.st_size, keys


def _members(archive: tarfile.TarFile, source: Path) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(archive):
        if number > MAX_MEMBERS:
            raise NetspaceError(f"{source}: more than {MAX_MEMBERS} files")
        yield member


def _acceptable(
    layout: Layout, archive: tarfile.TarFile, first: tarfile.TarInfo | None, source: Path
) -> dict[str, Any]:
    """Return the name keys in an archive; check that it is of this instance and of no newer RabbitMQ.

    :raises NetspaceError: it isn't.
    """
    about: Any = None
    if first is not None and first.name == ABOUT and first.isreg() and first.size <= MAX_ABOUT:
        stream = archive.extractfile(first)
        try:
            about = json.loads(stream.read()) if stream is not None else None
        except ValueError:
            about = None
    if not isinstance(about, dict) or about.get("netspace") != 1 or not isinstance(about.get("rabbitmq"), list):
        raise NetspaceError(f"{source}: it is no archive of mail; `netspace_link.backup` makes one")
    if about.get("instance") != layout.instance:
        raise NetspaceError(
            f"{source}: it is of the instance {about.get('instance')!r:.40}, this one is {layout.instance!r}"
        )
    version = about["rabbitmq"]
    if not all(type(part) is int for part in version) or version > _installed():
        told = ".".join(map(str, version))
        raise NetspaceError(f"{source}: it is of RabbitMQ {told:.40}; install that version or a newer one")
    keys: Any = about.get("names")
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise NetspaceError(f"{source}: it lacks the keys of its names; take another backup")
    return keys


def _extract(archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], aside: Path, source: Path) -> None:
    user = pwd.getpwnam(node.USER)
    free = shutil.disk_usage(aside.parent).free
    aside.mkdir(mode=0o700)
    os.chown(aside, user.pw_uid, user.pw_gid)
    for member in members:
        parts = PurePosixPath(member.name).parts
        if parts == (DATA,) and member.isdir():
            continue
        if parts[:1] != (DATA,) or ".." in parts or not (member.isreg() or member.isdir()):
            raise NetspaceError(f"{source}: {member.name!r:.80} has no place in an archive of mail")
        target = aside.joinpath(*parts[1:])
        if member.isdir():
            target.mkdir(mode=0o700)
        else:
            free -= member.size
            content = archive.extractfile(member)
            if free < 0 or content is None:
                raise NetspaceError(f"{source}: {aside.parent} has no room for what is in it; make room there")
            with open(target, "xb") as stream:
                shutil.copyfileobj(content, stream)
            target.chmod(0o600)
        os.chown(target, user.pw_uid, user.pw_gid)
    files.sync_all(aside)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders atomically (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"renameat2: {os.strerror(number)}", str(other))
    files.sync_all(other.parent)
