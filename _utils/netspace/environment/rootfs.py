"""An environment's root: an overlay of its own on an image that others use too.

Even a read-only environment has its own, because two programs on one file system see each
other's file locks and inotify events there. The image is mounted with the environment's
user ids; what it writes goes to a layer that belongs to it and to this very image: a new
image starts with an empty layer (what shall stay belongs into a volume). A read-only
environment's layer, which only holds mount points, is volatile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from netspace.environment import mounts
from netspace.environment.ids import COUNT
from netspace.errors import NetspaceError
from netspace.layout import Layout

_PASSABLE = 0o711


def assemble(layout: Layout, name: str, image: Path, digest: str, base: int, *, volatile: bool) -> None:
    """Mount the environment's root at ``<bundle>/rootfs``, which has nothing mounted on it.

    :param image: where the image is mounted.
    :raises NetspaceError: when a mount fails, with which and why.
    """
    bundle = layout.bundle(name)
    layer = (bundle / "layer") if volatile else layout.environment(name) / digest[:16]
    upper, work, lower, root = layer / "upper", layer / "work", bundle / "lower", bundle / "rootfs"
    # The runtime walks here as the environment's own user, whatever the umask was of who made these.
    for folder in (layout.run, bundle.parent, bundle):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_mode & _PASSABLE != _PASSABLE:
            folder.chmod(_PASSABLE)
    layer.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (layer, upper, work, lower, root):
        folder.mkdir(exist_ok=True, mode=0o700)
    if not volatile:
        _forget_other_layers(layer)
    # The layer's top is the root folder itself, as the environment sees it.
    os.chown(upper, base, base)
    upper.chmod(0o755)
    try:
        mounts.unmount(lower)
        with mounts.user_namespace(base, COUNT) as ids:
            mounts.idmapped(image, lower, ids)
        try:
            mounts.overlay(lower, upper, work, root, mounts.NOSUID | mounts.NODEV)
        finally:
            mounts.unmount(lower)  # the overlay keeps it; nobody else needs it
    except OSError as err:
        raise NetspaceError(f"environment {name}: {err}") from err


def _forget_other_layers(layer: Path) -> None:
    for entry in os.scandir(layer.parent):
        if entry.is_dir(follow_symlinks=False) and entry.name not in (layer.name, "handout"):
            shutil.rmtree(entry.path, ignore_errors=True)


def is_assembled(layout: Layout, name: str, mounted: Collection[str]) -> bool:
    return str(layout.bundle(name) / "rootfs") in mounted


def dismantle(layout: Layout, name: str) -> None:
    """Unmount the environment's root; its layer stays."""
    bundle = layout.bundle(name)
    for folder in ("rootfs", "lower"):
        mounts.unmount(bundle / folder)


def erase(layout: Layout, name: str) -> None:
    """Unmount the root and remove bundle and layers."""
    dismantle(layout, name)
    for folder in (layout.bundle(name), layout.environment(name)):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
