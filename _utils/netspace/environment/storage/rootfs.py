"""An environment's root: its own overlay on an image that other environments may share.

Even a read-only environment has its own overlay, because two programs on one file system see each other's file locks
and inotify events. The image is mounted with the environment's user ids. The environment writes to a layer that belongs
to this environment and this image. A new image begins with an empty layer, so lasting data belongs into a volume. The
layer is a folder; if its size is bounded, it is a file system (``disks``). A read-only environment's layer is volatile
and holds only mount points. A layer with the program for process 1 (``init``) may lie between the image and the
writable layer.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from netspace.environment.storage import disk_sizes, disks, init, mounts, tree_removal
from netspace.environment.user_ids import COUNT, FIRST
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment

LOST = "lost-"
# tmpfs(5). Memory is taken as files need it.
_MEMORY_BOUNDS = "size=4m,nr_inodes=4096"


def assemble(layout: Layout, name: str, spec: Environment, image: Path, digest: str, base: int, keep: str = "") -> None:
    """Mount the environment's root at ``<bundle>/rootfs``; nothing may be mounted there yet.

    :param digest: the digest of the image.
    :param image: the mount point of the image.
    :param base: the host id of the environment's id 0.
    :param keep: digest of another image, whose layer is kept, too; empty: none.
    :raises MissingError: when the environment needs an init program that this host lacks.
    :raises NetspaceError: when a mount fails, with the mount and the reason.
    """
    above = [init.layer(layout)] if spec.init else []
    bundle = layout.bundle(name)
    _ways(layout, bundle, base)
    layer = bundle / "layer" if spec.read_only else _layer(layout, name, digest, spec.limits.disk, base, keep)
    # A read-only root's layer holds mount points, also those of an earlier declaration.
    tree_removal.remove(bundle / "layer")
    _own_memory(layout.inside(name))
    if spec.read_only:
        _own_memory(layer)
    upper, work, lower, root = layer / "upper", layer / "work", bundle / "lower", bundle / "rootfs"
    for folder in (layer, upper, work, lower, root):
        folder.mkdir(exist_ok=True, mode=0o700)
    # The layer's top is the root folder itself, as the environment sees it.
    _own(upper, base)
    upper.chmod(0o755)
    try:
        mounts.unmount(lower)
        mounts.keep_user_namespace(layout.users(name), base, COUNT)
        with mounts.opened(layout.users(name)) as ids:
            mounts.idmapped(image, lower, ids)
        try:
            mounts.overlay([*above, lower], upper, work, root, mounts.NOSUID | mounts.NODEV)
        finally:
            mounts.unmount(lower)  # the overlay keeps it; nobody else needs it
    except OSError as err:
        raise NetspaceError(f"environment {name}: {err}") from err


def _own_memory(folder: Path) -> None:
    """Mount a small tmpfs at *folder*.

    If the environment saw a tmpfs of the host instead, it could recognize the host and see how full that tmpfs is.
    """
    folder.mkdir(exist_ok=True, mode=0o700)
    flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
    mounts.mount("netspace", folder, "tmpfs", flags, f"mode=0700,{_MEMORY_BOUNDS}")


def _ways(layout: Layout, bundle: Path, base: int) -> None:
    """Make the folders above the environment's root, with modes that let only the runtime pass through them.

    The runtime passes as root of the environment's user namespace. It needs exactly these modes, whatever the umask of
    the process that makes the folders. Other users of the host can neither list the folders nor enter an environment's
    root, so they can't leave files and sockets there.
    """
    folders = {layout.run: 0o711, layout.identities: 0o700, bundle.parent: 0o711, bundle: 0o710}
    for folder, mode in folders.items():
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_mode & 0o777 != mode:
            folder.chmod(mode)
    if bundle.stat().st_gid != base:
        os.chown(bundle, -1, base)


def _layer(layout: Layout, name: str, digest: str, size: int | None, base: int, keep: str) -> Path:
    """Make the persistent layer on this image; return the folder that holds ``upper`` and ``work``.

    The layer is a folder; with *size*, it is a file system. If a layer of the other kind exists, its content is copied.
    If the copy fails, the old layer stays. A layer of the wanted kind is always complete, so a layer of the other kind
    beside it is a left-over.
    """
    folder = layout.environment(name) / digest[:16]
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A layer has its final name only while it is complete: a killed run would leave a partial one.
    making, leaving = (folder.with_name(f"{folder.name}{suffix}") for suffix in (".new", ".old"))
    tree_removal.remove(making)
    tree_removal.remove(leaving)
    place = disks.layer(layout, name, digest, disks.LEAST if size is None else size)
    if size is None:
        if place.file.exists() and not folder.exists():
            making.mkdir(mode=0o700)
            with disks.attached(place.file, place.point):
                disks.copy(place.folder, making / place.content)
            making.rename(folder)
        disks.remove(place.file)
        layer = folder
    else:
        if folder.exists() and not place.file.exists():
            disks.write(place, folder / place.content, base, 0o755)
        disks.ensure(place, base, 0o755)
        if folder.exists():
            folder.rename(leaving)
            tree_removal.remove(leaving)
        layer = place.point
    forget_layers(layout, name, {digest, keep or digest})
    return layer


def check(layout: Layout, name: str, spec: Environment, digest: str) -> None:
    """Check that a layer's content fits into the declared size. Changes nothing; the layer may be in use.

    :raises NetspaceError: when it doesn't fit.
    """
    size = spec.limits.disk
    if size is None or spec.read_only or disks.layer(layout, name, digest, size).file.exists():
        return
    content = layout.environment(name) / digest[:16] / "upper"
    held = disks.measure(content) if content.is_dir() else None
    if held is not None and (message := disk_sizes.overfull(size, *held)):
        raise NetspaceError(f"limits:disk: {message}")


def _own(upper: Path, base: int) -> None:
    """Make *base* the owner of the layer's top folder, and shift all ids in the layer from the old base to *base*.

    An environment whose record was lost may have got other ids. The top folder is changed last, so that an interrupted
    change is noticed and repeated.
    """
    old = upper.stat().st_uid
    if old != base and old >= FIRST:

        def move(name: str, folder: int) -> None:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            user, group = (one - old + base if old <= one < old + COUNT else -1 for one in (info.st_uid, info.st_gid))
            if (user, group) != (-1, -1):
                os.chown(name, user, group, dir_fd=folder, follow_symlinks=False)

        tree_removal.walk(upper, move)
    os.chown(upper, base, base)


def forget_layers(layout: Layout, name: str, keep: Collection[str]) -> None:
    """Remove an environment's layers, except those over an image in *keep* and those named ``lost-...``.

    :param keep: digests of images.
    """
    kept = tuple(digest[:16] for digest in keep)
    for entry in os.scandir(layout.environment(name)):
        if entry.name == "handout" or entry.name.startswith((*kept, LOST)):
            continue
        if entry.is_dir(follow_symlinks=False):
            tree_removal.remove(Path(entry.path))
        else:
            disks.remove(Path(entry.path))


def layers(layout: Layout, among: Collection[str] | None = None) -> set[str]:
    """Return the names of the environments that have, or had, a layer.

    :param among: the names to look up; None: all.
    """
    if among is not None:
        places = {name: layout.environment(name) for name in among}
        return {name for name, place in places.items() if place.is_dir() and not place.is_symlink()}
    try:
        return {entry.name for entry in os.scandir(layout.layers) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def adopt(layout: Layout, name: str, digest: str) -> None:
    """Keep the layers of an environment whose record was lost, since nobody asked to remove them.

    The layer on the image *digest* stays in use. A layer on another image can't be used any more: it gets a name that
    begins with ``lost-``, and is kept until the environment is removed.
    """
    dismantle(layout, name)
    tree_removal.remove(layout.bundle(name))
    folder = layout.environment(name)
    if not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if entry.name != "handout" and not entry.name.startswith((digest[:16], LOST)):
            target, number = folder / f"{LOST}{entry.name}", 1
            while target.exists():
                target, number = folder / f"{LOST}{entry.name}.{number}", number + 1
            os.rename(entry.path, target)


def dismantle(layout: Layout, name: str) -> None:
    """Unmount the environment's root and its bounded file systems; their content stays."""
    bundle = layout.bundle(name)
    fixed = (bundle / "rootfs", bundle / "lower", bundle / "layer", layout.inside(name), layout.users(name))
    for folder in (*fixed, *sorted((bundle / "volumes").glob("*"))):
        mounts.unmount(folder)
    disks.detach_all(layout, name)


def erase(layout: Layout, name: str) -> None:
    """Unmount the root; remove the bundle and all layers."""
    dismantle(layout, name)
    for folder in (layout.bundle(name), layout.environment(name)):
        tree_removal.remove(folder)
