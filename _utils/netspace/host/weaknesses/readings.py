"""Values of a host's kernel, read from ``/proc`` and ``/sys``. Nothing here judges or changes anything.

At most a page of a file is read (no file in ``/sys`` is larger), and at most 256 names in a folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from netspace import files
from netspace.environment.container import apparmor
from netspace.layout import Layout

_MOST = 4096  # the most bytes of a file
_NAMES = 256  # the most names of a folder
_USB = re.compile(r"usb[0-9]{1,4}")
_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)


class Reading(NamedTuple):
    """The text of a file without surrounding blanks, or the *error* because of which it can't be read."""

    text: str = ""
    error: str = ""


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """Values that were read on a host.

    :param sysctls: the sysctls in ``weaknesses.SYSCTLS``, by name with dots.
    :param modules: ``/sys/kernel/security/lsm``.
    :param apparmor: ``/sys/module/apparmor/parameters/enabled``.
    :param toothless: why AppArmor is on but enforces no profile; empty if it enforces profiles or is off.
    :param parser: the path of AppArmor's parser; empty if it is not installed.
    :param unloaded: why the last profile could not be loaded; empty if it could, or there was none.
    :param lockdown: ``/sys/kernel/security/lockdown``.
    :param merging: ``/sys/kernel/mm/ksm/run``.
    :param threads: ``/sys/devices/system/cpu/smt/active``.
    :param processor: the files of ``/sys/devices/system/cpu/vulnerabilities``, by name.
    :param controllers: ``/sys/fs/cgroup/cgroup.controllers``, which exists under cgroup version 2.
    :param hierarchies: the names of cgroup version 1's hierarchies, below ``/sys/fs/cgroup``.
    :param iommus: the names in ``/sys/class/iommu``; None if there is no such folder.
    :param iommu_groups: the number of names in ``/sys/kernel/iommu_groups``, at most 256.
    :param usb: the files ``authorized_default`` of USB controllers, by the controller's name.
    :param xen: permission bits and owner of each device in ``/dev/xen``, by name; empty if there is no such folder;
        None if ``/dev`` can't be read.
    :param virtual: whether the processor says that this is a virtual machine; None if it is not known.
    """

    sysctls: Mapping[str, Reading]
    modules: Reading
    apparmor: Reading
    toothless: str
    parser: str
    unloaded: str
    lockdown: Reading
    merging: Reading
    threads: Reading
    processor: Mapping[str, Reading]
    controllers: Reading
    hierarchies: Collection[str]
    iommus: Collection[str] | None
    iommu_groups: int
    usb: Mapping[str, Reading]
    xen: Mapping[str, tuple[int, int]] | None
    virtual: bool | None


def path(sysctl: str) -> str:
    """Return the path of the file for a sysctl, whose name has dots."""
    return f"/proc/sys/{sysctl.replace('.', '/')}"


def read(sysctls: Iterable[str], root: Path = Path("/")) -> Readings:
    """Return the values, each with an error if it can't be read. No privilege is needed, but root can read more.

    :param root: the folder with the host's files; only tests set it.
    """
    cgroup, processor = root / "sys/fs/cgroup", root / "sys/devices/system/cpu"
    controllers, known = cgroup / "cgroup.controllers", processor / "vulnerabilities"
    iommu, bus = root / "sys/class/iommu", root / "sys/bus/usb/devices"
    return Readings(
        sysctls={name: _text(root / path(name)[1:]) for name in sysctls},
        modules=_text(root / "sys/kernel/security/lsm"),
        apparmor=_text(root / "sys/module/apparmor/parameters/enabled"),
        toothless=apparmor.toothless(Layout(root=root)),
        parser=apparmor.parser(Layout(root=root)) or "",
        unloaded=apparmor.look(Layout(root=root)).failed,
        lockdown=_text(root / "sys/kernel/security/lockdown"),
        merging=_text(root / "sys/kernel/mm/ksm/run"),
        threads=_text(processor / "smt/active"),
        processor={name: _text(known / name) for name in _names(known)},
        controllers=_text(controllers),
        # Below version 2's root the folders are cgroups, not hierarchies.
        hierarchies=() if os.path.lexists(controllers) else tuple(_names(cgroup)),
        iommus=tuple(_names(iommu)) if iommu.is_dir() else None,
        iommu_groups=len(_names(root / "sys/kernel/iommu_groups")),
        usb={name: _text(bus / name / "authorized_default") for name in _names(bus) if _USB.fullmatch(name)},
        xen=_devices(root / "dev/xen") if (root / "dev").is_dir() else None,
        virtual=_virtual(root / "proc/cpuinfo"),
    )


def _virtual(cpuinfo: Path) -> bool | None:
    """Return whether the first processor has the flag ``hypervisor``; None if no flags are listed, as on arm64."""
    found = _FLAGS.search(_text(cpuinfo).text)
    return None if found is None else "hypervisor" in found[1].split()


def _devices(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the permission bits and the owner of each file in *folder*, by name."""
    found = {}
    for name in _names(folder):
        with contextlib.suppress(OSError):
            info = os.lstat(folder / name)
            found[name] = (stat.S_IMODE(info.st_mode), info.st_uid)
    return found


def _text(file: Path) -> Reading:
    try:
        return Reading(files.read(file, _MOST).decode(errors="replace").strip())
    except OSError as err:
        return Reading(error=err.strerror or str(err))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, _NAMES))
    except OSError:
        return []
