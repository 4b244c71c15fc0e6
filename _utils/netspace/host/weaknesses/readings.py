"""Values of a host's kernel, read from ``/proc`` and ``/sys``. Nothing here judges or changes anything.

At most a page of a file is read (no file in ``/sys`` is larger), and at most 256 names in a folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from netspace import files
from netspace.environment.container import apparmor
from netspace.layout import Layout

_MOST = 4096  # the most bytes of a file
_NAMES = 256  # the most names of a folder


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


def path(sysctl: str) -> str:
    """Return the path of the file for a sysctl, whose name has dots."""
    return f"/proc/sys/{sysctl.replace('.', '/')}"


def read(sysctls: Iterable[str], root: Path = Path("/")) -> Readings:
    """Return the values, each with an error if it can't be read. No privilege is needed, but root can read more.

    :param root: the folder with the host's files; only tests set it.
    """
    cgroup, processor = root / "sys/fs/cgroup", root / "sys/devices/system/cpu"
    controllers, known = cgroup / "cgroup.controllers", processor / "vulnerabilities"
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
    )


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
