"""Check whether an image has the program that its environment is to run.

A missing program is reported only if it is certainly missing. If a volume, a layer or another file system of the
environment may have the program, nothing is reported; the start will show whether it exists. This module builds, mounts
and writes nothing.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from netspace.environment.container import oci_config
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Store, sources
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment

if TYPE_CHECKING:
    from netspace.environment.images.tree import Tree

# What every environment has mounted there, so that an image says nothing about it.
_COVERED = ("/dev", "/proc", "/run", "/sys", "/tmp")  # noqa: S108 (inside)

Has = Callable[[str, bool], bool]
"""Whether something exists at this path of a root; also True if that is not certain.

The second argument: whether a link at the path's end is followed.
"""


def lacking(
    layout: Layout, store: Store, desired: Mapping[str, DesiredEnvironment], observed: Observed, *, deep: bool
) -> dict[str, str]:
    """Return an error, by name, for each environment that is to be started and whose image lacks its program.

    :param deep: also read the sources of images that are not built yet. An apply doesn't need this, since it builds the
        images and starts the programs.
    """
    looks: dict[str, tuple[Has, Defaults] | None] = {}
    found = {}
    for name, want in desired.items():
        seen = observed.environments.get(name)
        source = observed.sources.get(want.image)
        renewed = seen is not None and source is not None and source.identity not in ("", seen.record.image.identity)
        if seen is not None and not renewed and seen.record.spec == want.spec:
            status = seen.status
            if status is not None and status.state == "running":
                continue  # it runs unchanged: save the calls below
        if want.state != "running" or want.kept or want.spec.kernel or not (renewed or _starts(want, seen)):
            continue
        if want.image not in looks:
            looks[want.image] = _look(store, want.image, observed, deep)
        look = looks[want.image]
        if look is None:
            continue
        has, defaults = look
        if not renewed and _layered(name, want, seen, observed):
            rootfs = str(layout.bundle(name) / "rootfs")
            if rootfs not in observed.mounted:
                continue  # a run that was killed left the folder; the layer may have the program
            has = _either(has, _within(rootfs))
        if why := _lack(want.spec, defaults, has):
            found[name] = (
                f"netspace:environments:{name}:command: image {want.image} has no {why}; name a program that it has"
            )
    return found


def _starts(want: DesiredEnvironment, seen: ObservedEnvironment | None) -> bool:
    """Return whether the environment will be started, or will run another program than now."""
    if seen is None or seen.status is None or seen.status.state != "running":
        return True
    was = seen.record.spec
    return any(
        getattr(was, key) != getattr(want.spec, key) for key in ("image", "command", "args", "env", "working_dir")
    )


def _layered(name: str, want: DesiredEnvironment, seen: ObservedEnvironment | None, observed: Observed) -> bool:
    """Return whether a writable layer, which may have the program, is or stays above the image."""
    if want.spec.read_only:
        return False
    return name in observed.unrecorded or (seen is not None and seen.record.spec.image == want.spec.image)


def _look(store: Store, image: str, observed: Observed, deep: bool) -> tuple[Has, Defaults] | None:
    """Return a function that looks for names in an image, and the image's settings; None if the image can't be read."""
    import tempfile

    note = store.note(image)
    mounted = note is not None and str(store.mountpoint(note.digest)) in observed.mounted
    if note is not None and mounted and (observed.sources.get(image) or store.seen(image)).identity == note.identity:
        return _within(str(store.mountpoint(note.digest))), note.defaults
    if not deep:
        return None
    try:
        source, location = sources.split(image)
        if "://" in location or not isinstance(source, sources.Listed):
            return None
        with tempfile.TemporaryDirectory(prefix="netspace-", dir="/var/tmp") as scratch:
            tree, defaults = source.listed(location, Path(scratch))
    except (NetspaceError, OSError):  # the plan tells of it, or the build will
        return None
    return _listed(tree), defaults


def _listed(tree: Tree) -> Has:
    """Return a function that looks for names in an image that isn't built yet."""

    def has(path: str, follow: bool) -> bool:
        if follow:
            return tree.find(os.fsencode(path)) is not None
        folder = tree.find(os.fsencode(posixpath.dirname(path)))
        return folder is not None and os.fsencode(posixpath.basename(path)) in folder.children

    return has


def _within(root: str) -> Has:
    """Return a function that looks for names in a folder with a root file system, which may be hostile."""
    from netspace.environment.storage import guest_files

    def has(path: str, follow: bool) -> bool:
        flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        try:
            folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            os.close(guest_files.opened(folder, path, flags, one_file_system=True))
        except OSError as err:
            return err.errno not in (errno.ENOENT, errno.ENOTDIR)
        finally:
            os.close(folder)
        return True

    return has


def _either(one: Has, other: Has) -> Has:
    return lambda path, follow: one(path, follow) or other(path, follow)


def _lack(spec: Environment, defaults: Defaults, has: Has) -> str:
    """Return the certainly missing program and the places where it was looked for; otherwise an empty text."""
    arguments = oci_config.arguments_of(spec, defaults)
    if not arguments or not arguments[0]:
        return ""  # the plan tells of it
    program = arguments[0]
    if "/" in program:
        places = [posixpath.join(spec.working_dir or defaults.working_dir or "/", program)]
        where = program
    else:
        path = {"PATH": oci_config.PATH, **dict(defaults.env), **spec.env}["PATH"]
        places = [posixpath.join(folder, program) for folder in path.split(":") if folder.startswith("/")]
        where = f"{program} in {path}"
    covered = (*_COVERED, *(volume.target for volume in spec.volumes))
    for place in places:
        if posixpath.normpath(place) != place or _below(place, covered) or has(place, False):
            return ""
        # The folder may be a link to where a volume is mounted.
        if spec.volumes and not has(posixpath.dirname(place), True):
            return ""
    return where if places else ""


def _below(place: str, folders: tuple[str, ...]) -> bool:
    return any(f"{place}/".startswith(f"{folder.rstrip('/')}/") for folder in folders)
