"""Cgroup limits of a running environment: reads them, and changes them in place.

The runtime sets the limits when an environment starts, from ``oci_config``. This module changes limits without a
restart, and finds limits that differ from the declaration. Sources: cgroups(7) and the kernel's cgroup-v2, memory,
blkio-controller and pids pages.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.spec.types import Io, Limits

ROOT = "/sys/fs/cgroup"

# The cgroup controller of each limit; version 1 calls io blkio.
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids", "io": "io"}
_ALIASES = {"blkio": "io"}

# Not a controller: the memory of TCP sockets, which some kernels bound separately under version 1.
SOCKETS = "sockets"
_SOCKETS_FILE = "memory.kmem.tcp.limit_in_bytes"

PERIOD = 100_000  # microseconds; cpu.cfs_period_us
_LEAST_QUOTA = 1_000  # microseconds; the kernel takes no less

# The rates of a device: the declaration's key, version 1's file, version 2's key in io.max.
_RATES = (
    ("read", "blkio.throttle.read_bps_device", "rbps"),
    ("write", "blkio.throttle.write_bps_device", "wbps"),
    ("read_ops", "blkio.throttle.read_iops_device", "riops"),
    ("write_ops", "blkio.throttle.write_iops_device", "wiops"),
)
# The declaration's key, and the key in an OCI configuration.
OCI_RATES = {
    "read": "throttleReadBpsDevice",
    "write": "throttleWriteBpsDevice",
    "read_ops": "throttleReadIOPSDevice",
    "write_ops": "throttleWriteIOPSDevice",
}

Device = tuple[int, int]


class Setting(msgspec.Struct, frozen=True):
    """One file of a cgroup, and the value to write to it.

    :param key: the declaration's name of the limit that the file sets.
    :param optional: whether the kernel may lack the file.
    """

    key: str
    file: str
    value: str
    optional: bool = False


def limits(known: Iterable[str]) -> frozenset[str]:
    """Return the controllers among *known* that can enforce a limit. The names are those of :data:`CONTROLLERS`."""
    return frozenset(_ALIASES.get(name, name) for name in known) & frozenset(CONTROLLERS.values())


def sockets() -> frozenset[str]:
    """Return a set with :data:`SOCKETS` if the kernel limits the memory of TCP sockets separately.

    Otherwise the set is empty.
    """
    return frozenset({SOCKETS} if os.path.exists(f"{ROOT}/memory/{_SOCKETS_FILE}") else ())


def quota(cpus: float) -> int:
    """Return the CPU time that the environment may use in each period, in microseconds."""
    return max(round(cpus * PERIOD), _LEAST_QUOTA)


def rates(io: Io) -> dict[str, int]:
    """Return the declared I/O rates, by key."""
    return {key: int(getattr(io, key)) for key, _, _ in _RATES if getattr(io, key) is not None}


def settings(spec: Limits, devices: Collection[Device], unified: bool) -> list[Setting]:
    """Return the settings that an environment's cgroup must have. Pure.

    :param devices: the disks to which the limits ``io`` apply.
    :param unified: whether the host has cgroup version 2.
    """
    memory = str(int(spec.memory))
    wanted = rates(spec.io)
    if unified:
        found = [
            Setting("memory", "memory.max", memory),
            Setting("memory", "memory.swap.max", "0", optional=True),
            Setting("cpus", "cpu.max", f"{quota(spec.cpus)} {PERIOD}"),
            Setting("pids", "pids.max", str(spec.pids)),
        ]
        found += [
            Setting(
                "io",
                "io.max",
                " ".join((f"{major}:{minor}", *(f"{key}={wanted.get(name, 'max')}" for name, _, key in _RATES))),
            )
            for major, minor in sorted(devices)
        ]
        return found
    found = [
        Setting("memory", "memory.limit_in_bytes", memory),
        # Memory and swap together: equal means no swap.
        Setting("memory", "memory.memsw.limit_in_bytes", memory, optional=True),
        Setting("memory", _SOCKETS_FILE, memory, optional=True),
        Setting("cpus", "cpu.cfs_period_us", str(PERIOD)),
        Setting("cpus", "cpu.cfs_quota_us", str(quota(spec.cpus))),
        Setting("pids", "pids.max", str(spec.pids)),
    ]
    found += [
        Setting("io", file, f"{major}:{minor} {wanted.get(name, 0)}")
        for major, minor in sorted(devices)
        for name, file, _ in _RATES
    ]
    return found


class Hierarchies:
    """The folders of this host's cgroup hierarchies, looked up once for all environments.

    :param controllers: the controllers that can enforce limits on this host.
    """

    def __init__(self, mounted: Mapping[str, mounts.Mount], controllers: Collection[str]) -> None:
        self.controllers = controllers
        there = mounts.below(ROOT, mounted)
        self.unified = ROOT in there and there[ROOT].kind == "cgroup2"
        self.folders = {
            name: target
            for target, mount in there.items()
            if target != ROOT and mount.kind == "cgroup"
            for name in target.rpartition("/")[2].split(",")
        }


class Group:
    """One environment's cgroup, in all cgroup hierarchies of this host.

    :param path: the cgroup's path from the root of each hierarchy.
    :param unit: whether the cgroup's parent is a systemd unit, which has the same limits except io. A lower limit of
        the parent would limit the environment, and systemd applies a changed unit file only later. So this class
        changes the limits of both cgroups. systemd rounds the CPU limit, so a difference in it is ignored.
    :param lacks: limits that whoever made this cgroup (systemd) does not set, so that they are neither compared nor
        changed here. Only ``sockets`` has an effect.
    """

    def __init__(self, path: str, hierarchies: Hierarchies, *, unit: bool = False, lacks: Collection[str] = ()) -> None:
        self.unified = hierarchies.unified
        self._above = Group(path.rpartition("/")[0], hierarchies, lacks=(SOCKETS,)) if unit else None
        self._lacks = lacks
        self._path = path
        self._controllers = hierarchies.controllers
        self._folders = hierarchies.folders

    def _file(self, name: str) -> str:
        folder = ROOT if self.unified else self._folders.get(name.partition(".")[0], ROOT)
        return f"{folder}{self._path}/{name}"

    def _settings(self, spec: Limits, devices: Collection[Device]) -> list[Setting]:
        kept = [one for one in settings(spec, devices, self.unified) if CONTROLLERS[one.key] in self._controllers]
        return [one for one in kept if one.file != _SOCKETS_FILE or SOCKETS not in self._lacks]

    def used(self) -> int:
        """Return the bytes that count towards the cgroup's memory limits.

        With cgroup version 1, this includes the data of TCP sockets, which version 1 counts separately.
        """
        files = ("memory.current",) if self.unified else ("memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")
        found = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError), open(self._file(file), "rb", buffering=0) as stream:
                found += int(stream.read())
        return found

    def differing(self, spec: Limits, devices: Collection[Device]) -> tuple[str, ...]:
        """Return the limits that differ from *spec*; empty if the environment doesn't run."""
        found = [key for key in self._above.differing(spec, ()) if key != "cpus"] if self._above else []
        for one in self._settings(spec, devices):
            try:
                with open(self._file(one.file), "rb", buffering=0) as stream:
                    now = stream.read(4096).decode()
            except OSError:
                continue
            if one.key not in found and not _same(one, now):
                found.append(one.key)
        return tuple(found)

    def change(self, spec: Limits, devices: Collection[Device]) -> None:
        """Set a running environment's limits to the limits in *spec*.

        :raises NetspaceError: when a limit can't be set; the other limits are still set.
        """
        if self._above is not None:
            self._above.change(spec, ())
        failed: dict[str, str] = {}
        todo = self._settings(spec, devices)
        # Version 1 has two memory bounds, and the first must never exceed the second. Writing
        # both twice works, whether they grow or shrink.
        for one in (*todo, *(one for one in todo if one.key == "memory")):
            try:
                if one.file == "memory.max":
                    self._reclaim(int(one.value))
                _write(self._file(one.file), one.value)
                failed.pop(one.file, None)
            except FileNotFoundError:
                if not one.optional and os.path.isdir(os.path.dirname(self._file(one.file))):
                    failed[one.file] = f"limits:{one.key}: this kernel has no {one.file}"
            except OSError as err:
                reason = err.strerror
                if err.errno == errno.EBUSY:
                    reason = "it uses more than that now, and nothing of it can be freed; restart it"
                failed[one.file] = f"limits:{one.key}: {reason}"
        if failed:
            raise NetspaceError("; ".join(dict.fromkeys(failed.values())))

    def _reclaim(self, wanted: int) -> None:
        """Make the kernel free the memory above *wanted*, in bytes.

        Otherwise, under cgroup version 2, the kernel would kill processes when the lower limit is written to
        memory.max.

        :raises OSError: EBUSY when the kernel can't free enough (the error that version 1 gives, too).
        """
        file = self._file("memory.current")
        with open(file, "rb", buffering=0) as stream:
            over = int(stream.read()) - wanted
        if over > 0:
            with contextlib.suppress(OSError):  # EAGAIN: it freed a part; or an older kernel
                _write(self._file("memory.reclaim"), str(over))
            with open(file, "rb", buffering=0) as stream:
                if int(stream.read()) > wanted:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _write(file: str, value: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value.encode())
    finally:
        os.close(handle)


def _same(one: Setting, now: str) -> bool:
    """Return whether *now*, the present content of a setting's file, is equivalent to the setting's value."""
    if one.key == "memory":
        page = os.sysconf("SC_PAGESIZE")  # the kernel rounds down
        with contextlib.suppress(ValueError):
            return int(now) == int(one.value) // page * page
        return False
    if one.key != "io":
        return now.split() == one.value.split()
    device, *wanted = one.value.split()
    line = next((line.split()[1:] for line in now.splitlines() if line.split()[:1] == [device]), None)
    if line is None:  # a device without a line has no bound
        return all(value == "0" or value.endswith("=max") for value in wanted)
    return sorted(line) == sorted(wanted)


# -- disks -------------------------------------------------------------------------


def disk(path: Path) -> Device | None:
    """Return the disk of the file system of *path*; None if it has no disk (memory, network).

    This is the whole disk, not a partition, because I/O rates apply to disks.
    """
    try:
        number = os.stat(_existing(path)).st_dev
        if os.major(number) == 0:  # no device of its own: for btrfs and others, the mount names the device
            source = mounts.over(str(path), mounts.Single()).source
            if not source.startswith("/dev/"):
                return None
            number = os.stat(source).st_rdev
        folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        if (folder / "partition").exists():
            folder = folder.parent
        major, minor = (folder / "dev").read_text().split(":")
        return int(major), int(minor)
    except (OSError, ValueError, KeyError):
        return None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
