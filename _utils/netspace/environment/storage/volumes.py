"""Volumes of environments: folders of the host, or file systems that netspace makes. Each belongs to one environment.

A missing volume is made. Only a purge deletes a file system of netspace's (``disks``); netspace never deletes a folder
of the host.

Files on disk have the ids that they have in the environment: a file of the environment's user 1000 belongs to user 1000
on disk. So volumes can be backed up and outlive the environment. On the host those ids may belong to somebody, so a
writable volume must lie below a folder of root's with mode 0700. Only root may write to the folders above a volume.
Another user could put a link in the volume's place, and so give any folder of the host to an environment.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from netspace import paths
from netspace.environment.storage import disks, mounts, tree_removal
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.checks import within
from netspace.spec.types import Volume


def folder(layout: Layout, name: str, volume: Volume) -> Path:
    """Return the host's folder that is mounted at the volume's target. Pure."""
    if volume.source is not None:
        return Path(volume.source)
    return disks.volume(layout, name, volume).folder


def shown(layout: Layout, name: str, index: int) -> Path:
    """Return the host path at which a volume is mounted with mapped ids, for a runtime that can't map ids itself.

    :param index: the volume's position in the declaration.
    """
    return layout.bundle(name) / "volumes" / str(index)


def show(layout: Layout, name: str, wanted: Sequence[Volume]) -> None:
    """Mount these volumes at :func:`shown`, with the ids of the environment's user namespace (``layout.users``).

    :raises NetspaceError: when a volume can't be mounted.
    """
    for index, volume in enumerate(wanted):
        target = shown(layout, name, index)
        target.mkdir(parents=True, exist_ok=True, mode=0o711)
        try:
            with mounts.opened(layout.users(name)) as ids:
                mounts.idmapped(folder(layout, name, volume), target, ids)
        except OSError as err:
            raise NetspaceError(f"environment {name}: volume {volume.target}: {err}") from err


def ensure(layout: Layout, name: str, volume: Volume, user: int) -> None:
    """Make sure that the volume's folder exists. A missing folder is made, and belongs to the uid *user* (inside).

    :raises NetspaceError: when that folder can't be a volume.
    """
    if volume.source is None:
        disks.ensure(disks.volume(layout, name, volume), user, 0o700)
        return
    source = Path(volume.source)
    where = f"environment {name}: volume {source}"
    try:
        if Path(os.path.realpath(source)) != source:
            raise NetspaceError(f"{where}: there is a link in the path; name the folder itself")
        mounted = mounts.table()
        device, path = mounts.origin(str(source), mounted)
        for own in (layout.state, layout.run, layout.broker, layout.logs):
            real = os.path.realpath(own)
            own_device, own_path = mounts.origin(real, mounted)
            alias = device == own_device and (within(path, own_path) or within(own_path, path))
            if alias or within(str(source), real) or within(real, str(source)):
                raise NetspaceError(f"{where}: {own} belongs to netspace; name another folder")
        if loose := paths.loose(source):
            raise NetspaceError(
                f"{where}: other users of this host could replace it, because they can write to {loose}; "
                "let only root write there (chown root, chmod go-w), or name another folder"
            )
        if not os.path.lexists(source):
            _make(source, user)
        if not source.is_dir():
            raise NetspaceError(f"{where}: not a folder")
        if not volume.read_only and not any(paths.private(folder) for folder in source.parents):
            raise NetspaceError(
                f"{where}: other users of this host could open files that the environment writes there (user {user}); "
                f"let only root enter a folder above it: chmod 0700 {source.parent}"
            )
    except OSError as err:
        raise NetspaceError(f"{where}: {err.strerror}") from err


def kept(layout: Layout, name: str) -> list[str]:
    """Return the targets of volumes that netspace made for environment *name*, even if it no longer exists."""
    found = layout.volumes(name).glob(f"*{disks.SUFFIX}")
    return sorted(f"/{urllib.parse.unquote(file.name.removesuffix(disks.SUFFIX))}" for file in found)


def erase(layout: Layout, name: str) -> None:
    """Delete the file systems that netspace made for the environment's volumes, with their content."""
    disks.detach_all(layout, name)
    tree_removal.remove(layout.volumes(name))


def _make(source: Path, user: int) -> None:
    """Make the folder *source*, owned by the uid *user*, and missing folders above it.

    The folder is made under another name, gets its owner, and is then renamed. So a run killed in between leaves no
    folder that looks like one of the operator's. Folders of other environments may be made at the same time, even in
    the same parent folder.
    """
    for folder in reversed([folder for folder in source.parents if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
    making = source.with_name(f".{hashlib.sha256(os.fsencode(source.name)).hexdigest()[:16]}.new")
    making.mkdir(mode=0o700, exist_ok=True)
    os.chown(making, user, user)
    making.rename(source)
