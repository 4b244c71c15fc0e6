"""Backup and restoration of all mail of netspace's own broker, in one file. The broker is down for some seconds.

A restoration checks the whole file (:mod:`netspace.link.mail.archive`) before it stops the broker. It exchanges the
data by one rename, and deletes the old mail once the node runs with the restored mail. If the node doesn't start, the
old mail is put back.

After a killed run, the node has either the old or the restored data; the other data are in the folder ``restoring``.
The next apply starts the broker if needed, and renames queues. The next restoration removes the folder; if the broker
can't start with the restored mail, it first puts the old mail back.

Nothing here changes the record of links.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netspace import files, paths
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import first_start, node
from netspace.link.mail import archive
from netspace.link.record import read
from netspace.link.topology import names
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Supervisor

_FORMER = "former.json"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


def save(layout: Layout, supervisor: Supervisor, target: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Write the broker's mail to *target*; return ``file`` and ``size``. The broker is down during this time.

    :raises NetspaceError: this host has no broker of netspace, or *target* can't be written. After an error the broker
        runs again.
    """
    with files.refusals_told(), files.locked(layout.lock):
        spec = _own(layout)
        _writable(target)
        aside = target.with_name(f".{target.name}.new")
        try:
            try:
                _down(supervisor)
                archive.pack(layout, aside)
            finally:
                node.start(layout, spec, supervisor, progress)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        files.sync_all(target.parent)
        return {"file": str(target), "size": target.stat().st_size}


def load(layout: Layout, supervisor: Supervisor, source: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Replace the broker's mail by the mail in *source*; return ``file`` and ``size``.

    **Its present mail is lost.**

    The record of links stays. The next apply removes undeclared objects from the restored data.

    :raises NetspaceError: this host has no broker of netspace, *source* can't be used, or the node doesn't start with
        its mail. In all these cases the present mail stays.
    """
    with files.refusals_told(), files.locked(layout.lock):
        spec = _own(layout)
        place = _place(layout)
        fresh = place.with_name("unpacked")
        try:
            _drop(fresh)
            fresh.mkdir(mode=0o700)
            size, keys = archive.unpack(layout, source, fresh / archive.DATA)
            # Only now, with a whole archive, may this give up mail.
            _settle(layout, spec, supervisor, progress)
            fresh.rename(place)
            try:
                _down(supervisor)
                first_start.finish(layout)  # a first start that was killed: the restored data are to be kept
                _note(layout)
                if keys:
                    names.adopt(layout, keys)
                _exchange(layout)
                node.start(layout, spec, supervisor, progress)
            except BaseException:
                _back(layout, supervisor)
                node.start(layout, spec, supervisor, progress)
                raise
        except BaseException:
            _drop(fresh)
            if not _exchanged(place):
                _drop(place)
            raise
        _drop(place)
        return {"file": str(source), "size": size}


def _own(layout: Layout) -> LocalBroker:
    record = read(layout)
    if not isinstance(record.broker, LocalBroker) or not record.links:
        raise NetspaceError(
            "there is no broker of netspace's own on this host; apply its links first, and back up your own cluster "
            "by its own tools"
        )
    node.available()
    return record.broker


def _down(supervisor: Supervisor) -> None:
    if failed := supervisor.stop([node.NODE]):
        raise NetspaceError(f"the broker can't be stopped: {'; '.join(failed.values())}")


def _writable(target: Path) -> None:
    if not paths.straight(target.parent):
        raise NetspaceError(f"{target}: expected an absolute path without links and '..'")
    if target.is_dir():
        raise NetspaceError(f"{target}: it is a folder; name a file")
    if found := paths.loose(target):
        raise NetspaceError(
            f"{target}: other users can write to {found}; name a file in a folder that only root can write"
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


# -- exchanging the mail -----------------------------------------------------------


def _place(layout: Layout) -> Path:
    """Return the folder of a restoration. It is on the file system of the broker's data, and only root can enter it."""
    return layout.broker / "restoring"


def _note(layout: Layout) -> None:
    """Record the inode of the restored data, and the name keys of the old mail.

    The inode shows later whether the data have been exchanged.
    """
    place = _place(layout)
    record = {"restored": os.lstat(place / archive.DATA).st_ino, "names": names.exported(layout)}
    files.write_json(place / _FORMER, record)
    files.sync_all(place)


def _exchanged(place: Path) -> bool:
    """Return whether the old mail is in *place*, so that the broker has the restored mail."""
    record = files.read_json(place / _FORMER)
    return record is not None and os.lstat(place / archive.DATA).st_ino != record["restored"]


def _settle(layout: Layout, spec: LocalBroker, supervisor: Supervisor, progress: Callable[[str], None]) -> None:
    """Clean up after a killed restoration. If the node can't start with the restored mail, put the old mail back."""
    place = _place(layout)
    if _exchanged(place):
        try:
            node.start(layout, spec, supervisor, progress)
        except NetspaceError as err:
            progress(f"putting the mail back that a killed restoration replaced: {err}")
            _back(layout, supervisor)
            node.start(layout, spec, supervisor, progress)
    _drop(place)


def _back(layout: Layout, supervisor: Supervisor) -> None:
    """Give the old mail back to the broker, with its name keys. The broker stays stopped."""
    place = _place(layout)
    record = files.read_json(place / _FORMER)
    if record is None:
        return
    if _exchanged(place):
        _down(supervisor)
        _exchange(layout)
    if record["names"]:
        names.adopt(layout, record["names"])
    else:
        names.forget(layout)


def _drop(place: Path) -> None:
    """Remove the folder of a restoration.

    The note in it is deleted first, because during the removal the mail is no longer complete.
    """
    if place.exists():
        files.remove(place / _FORMER)
        files.sync_all(place)
        shutil.rmtree(place, ignore_errors=True)


def _exchange(layout: Layout) -> None:
    """Exchange the broker's data with the data in :func:`_place` atomically (renameat2(2))."""
    aside = _place(layout) / archive.DATA
    libc = ctypes.CDLL(None, use_errno=True)
    with archive.opened_folder(layout.broker / "data") as data:
        _ensure(aside.with_name("empty"), data)
        with archive.opened_folder(archive.DATA, data):
            pass
        if libc.renameat2(_HERE, os.fsencode(aside), data, os.fsencode(archive.DATA), _EXCHANGE) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"renameat2: {os.strerror(number)}", archive.DATA)
    with archive.opened_folder(aside):  # the broker's user may have replaced it a moment ago
        files.sync_all(aside.parent)


def _ensure(empty: Path, data: int) -> None:
    """Make an empty data folder for the broker if it has none.

    :param empty: the path at which the folder is made before it is moved to its place.
    :param data: a descriptor of the folder that contains the data folder.
    """
    try:
        os.stat(archive.DATA, dir_fd=data, follow_symlinks=False)
    except FileNotFoundError:
        empty.mkdir(mode=0o700)
        user = pwd.getpwnam(node.USER)
        os.chown(empty, user.pw_uid, user.pw_gid, follow_symlinks=False)
        os.rename(empty, archive.DATA, dst_dir_fd=data)
