"""Copies of volumes with a size (``disks``), for backups and moves to another host.

A copy is one file in ``<folder>/<environment>``. It contains the volume's whole file system with all owners, modes and
attributes, and can be used on any host. A volume is copied and restored only while its environment's program does not
run, so copies are consistent. A copy gets its name only when it is complete, on disk and checked (e2fsck). A damaged
copy replaces nothing.

A volume with a ``source`` is a folder of the host; this module never touches it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

from netspace import files, paths
from netspace.environment import record, runtimes
from netspace.environment.container import oci_runtime
from netspace.environment.reconciler import Environments
from netspace.environment.storage import disks, ext4
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout
from netspace.spec.types import NAME, NAME_RULE
from netspace.supervision.service import Supervisor

_MENDED = 1  # exit code of e2fsck: errors were corrected
_ENDED = ("stopped", "failed")


def kept(layout: Layout) -> dict[str, dict[str, dict[str, Any]]]:
    """Return every volume with a size, by environment and target: ``size`` and ``used`` (bytes), ``file``.

    The result includes volumes of removed environments.
    """
    names = sorted(path.name for path in layout.volumes("").glob("*") if path.is_dir())
    return {name: {_target(file): _row(file) for file in _own(layout.volumes(name))} for name in names}


def save(layout: Layout, supervisor: Supervisor, name: str, folder: str) -> dict[str, dict[str, Any]]:
    """Copy the environment's volumes into *folder*; return the copies by target.

    :raises NetspaceError: when the environment's program runs, when it has no volume with a size, or when another user
        than root can write to *folder*.
    """
    place = _place(folder, name)
    with files.refusals_told(), files.locked(layout.lock):
        _idle(layout, supervisor, name)
        own = _own(layout.volumes(name))
        if not own:
            raise NetspaceError(f"{name}: it has no volume with a size; `netspace_volume.list` shows all")
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = {}
        for file in own:
            point = _point(layout, name, file)
            if point.is_mount():
                files.sync_all(point)
            made[_target(file)] = _copied(file, place / file.name)
        return made


def load(layout: Layout, supervisor: Supervisor, name: str, folder: str) -> dict[str, dict[str, Any]]:
    """Restore the environment's volumes from *folder*; return the volumes by target.

    **The volumes' present content is lost.**

    The environment need not exist: if it is declared later, it gets these volumes. A volume without a copy in *folder*
    stays unchanged.

    :raises NetspaceError: when the environment's program runs, or there is no copy, or a copy is damaged or doesn't
        belong to root. In these cases nothing changes.
    """
    place = _place(folder, name)
    with files.refusals_told(), files.locked(layout.lock):
        _idle(layout, supervisor, name)
        copies = _own(place)
        if not copies:
            raise NetspaceError(f"{place}: there is no copy of a volume; `netspace_volume.backup` makes it")
        for copy in copies:
            _trusted(copy)
        home = layout.volumes(name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        asides = {copy: home / f"{copy.name}.new" for copy in copies}
        try:
            for copy, aside in asides.items():
                _write(copy, aside)
        except BaseException:
            for aside in asides.values():
                aside.unlink(missing_ok=True)
            raise
        for copy, aside in asides.items():
            disks.detach(_point(layout, name, copy))
            aside.replace(home / copy.name)
        files.sync_all(home)
        known = record.read_each(layout, [name])[0]
        if name in known and layout.bundle(name).is_dir():  # else trust withholds it, or a start makes it
            failed = Environments(layout, supervisor).making.restore({name: known[name]})
            if why := failed.get(name):
                raise NetspaceError(f"{name}: its volumes were restored, but can't be mounted: {why}")
        return {_target(copy): _row(home / copy.name) for copy in copies}


# -- parts -------------------------------------------------------------------------


def _place(folder: str, name: str) -> Path:
    """Return the folder of an environment's copies below *folder*. Check that only root can write to it."""
    if not NAME.fullmatch(name):
        raise NetspaceError(f"{name!r:.80}: not a name of an environment: expected {NAME_RULE}")
    place = Path(folder) / name
    if not paths.straight(place):
        raise NetspaceError(f"folder: {folder}: expected an absolute path without links and '..'")
    if loose := paths.loose(place / "x"):
        raise NetspaceError(
            f"folder: other users of this host can write to {loose}; let only root write there, or name another folder"
        )
    return place


def _idle(layout: Layout, supervisor: Supervisor, name: str) -> None:
    service = oci_runtime.service_name(name)
    status = supervisor.observe({service}).get(service)
    if status is not None and status.state not in _ENDED:
        raise NetspaceError(f"{name}: its program runs and may write; call `netspace_environment.stop {name}` first")


def _trusted(copy: Path) -> None:
    """Check that no other user of this host can have written a copy.

    A manipulated file system could attack the kernel when it is mounted.
    """
    info = copy.lstat()
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise NetspaceError(f"{copy}: expected a file that belongs to root and that nobody else can write")


def _copied(file: Path, target: Path) -> dict[str, Any]:
    aside = target.with_name(f"{target.name}.new")
    try:
        _write(file, aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(target)
    files.sync_all(target.parent)
    return _row(target)


def _write(source: Path, aside: Path) -> None:
    """Copy a file system to the file *aside* as a sparse file, check the copy, and sync it to disk."""
    aside.unlink(missing_ok=True)
    _run("cp", "--sparse=always", "--reflink=auto", "--no-target-directory", str(source), str(aside), bad=1)
    aside.chmod(0o600)
    try:
        size, length = ext4.size_of(aside), aside.stat().st_size
    except ValueError as err:
        raise NetspaceError(f"{source}: it holds no ext4; take another copy") from err
    if size > length:
        raise NetspaceError(
            f"{source}: it is incomplete: {length} of the file system's {size} bytes; take another copy"
        )
    _run("e2fsck", "-f", "-p", str(aside), bad=_MENDED + 1)
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())


def _run(program: str, *arguments: str, bad: int) -> None:
    """Run a program.

    :param bad: the lowest exit code that is an error.
    :raises MissingError: the program isn't installed.
    """
    found = paths.program(program, runtimes.SEARCHED)
    if found is None:
        raise MissingError(f"the program {program}", "install it: apt-get install e2fsprogs coreutils")
    done = subprocess.run(
        [found, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"PATH": runtimes.SEARCHED, "LC_ALL": "C"},
    )
    if done.returncode >= bad:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit {done.returncode}"]
        raise NetspaceError(f"{program}: {said[0]}")


def _own(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{disks.SUFFIX}"))


def _point(layout: Layout, name: str, file: Path) -> Path:
    """Return the mount point of the volume with this file's name."""
    return layout.disks(name) / f"volume-{file.name.removesuffix(disks.SUFFIX)}"


def _target(file: Path) -> str:
    return f"/{urllib.parse.unquote(file.name.removesuffix(disks.SUFFIX))}"


def _row(file: Path) -> dict[str, Any]:
    info = file.stat()
    return {"size": info.st_size, "used": info.st_blocks * 512, "file": str(file)}
