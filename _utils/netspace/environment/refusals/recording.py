"""Recording of refused system calls: a BPF program attached to the kernel, and the maps of audited environments.

The program and the maps are pinned in a BPF file system of this instance (``/run/netspace/refusals``), which only root
may enter. This file system exists only while an environment is audited. The program and the maps belong to no process,
so the end of a process doesn't stop the recording. The program is attached last, and its file's name contains its
digest. So netspace attaches it again if a killed run left the set-up unfinished, or if an older netspace attached
another version.

The names of an environment's maps contain a digest of the settings that decide about its calls. If the settings change,
the environment gets new, empty maps. So each refusal is judged by the settings under which it happened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from netspace import files
from netspace.bpf import library as bpf
from netspace.environment import record as records
from netspace.environment.container import seccomp
from netspace.environment.record import Record
from netspace.environment.refusals import calls, program
from netspace.environment.storage import mounts
from netspace.environment.user_ids import RANGES
from netspace.layout import Layout

MAPS = ("calls", "files")
"""The two maps of an environment: its calls without and with a path."""
_LOOKS = "looks"
_ORDER = sys.byteorder
_ATTACHED = "attached"


class Difference(NamedTuple):
    """The difference between the recorded environments and those that shall be recorded.

    :param add: names of environments that get new maps.
    :param drop: names of environments whose maps are removed.
    """

    add: tuple[str, ...]
    drop: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.add or self.drop)


def folder(layout: Layout) -> Path:
    """Return the folder of the BPF file system."""
    return layout.run / "refusals"


def kept(layout: Layout, which: str, name: str, record: Record) -> Path:
    """Return the path of one of the environment's :data:`MAPS`, for the settings in its record."""
    return folder(layout) / f"{which}-{name}@{_settings(record)}"


def _settings(record: Record) -> str:
    """Return a digest of an environment's settings that decide whether a call is refused.

    They are the settings that netspace's suggestion for a refusal can change.
    """
    profile = record.spec.seccomp if record.profile is None else record.profile.digest
    return hashlib.sha256(f"{profile} {record.spec.read_only}".encode()).hexdigest()[:16]


def recordable(record: Record) -> bool:
    """Return whether an environment's refused system calls can be recorded.

    The host's kernel must answer the calls, and the program must not be a unikernel.
    """
    module = record.runtime.module
    return bool(module.RUNS == "images") and not module.OWN_KERNEL


def rules(record: Record) -> Mapping[str, Any]:
    """Return the profile of an environment's system calls."""
    return built_in(record.spec.seccomp) if record.profile is None else record.profile.rules


@functools.cache
def built_in(name: str) -> Mapping[str, Any]:
    """Return a built-in profile of system calls, made once per process because it is asked so often."""
    return seccomp.profile(name)


def attached(layout: Layout) -> bool:
    """Return whether this version's BPF program is attached, and so counts refusals."""
    return _mark() in _there(layout)


def difference(layout: Layout, wanted: Mapping[str, Record], without: Collection[str]) -> Difference:
    """Return which environments must be added or dropped. Only reads.

    :param wanted: records of the environments that shall be recorded, by name.
    :param without: names of environments that shall not be recorded.
    """
    there = _there(layout)
    if not there:
        return Difference(tuple(sorted(wanted)), ())
    named = names(layout)
    gone = named - files.record_names(layout.records(records.KIND), named)
    add = {name for name, record in wanted.items() if not _led(layout, there, name, record)}
    return Difference(tuple(sorted(add)), tuple(sorted((named & set(without)) | gone - add)))


def names(layout: Layout) -> set[str]:
    """Return the environments whose refused calls are recorded."""
    there = _there(layout)
    return {name for which in MAPS for name in _names(there, which)}


def audited(known: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records in *known* of environments whose refused calls shall be recorded."""
    return {name: record for name, record in known.items() if record.spec.audit and recordable(record)}


def begin(layout: Layout, known: Mapping[str, Record]) -> None:
    """Begin to record the refused calls of those environments in *known* that are audited and not recorded yet.

    :raises OSError: the kernel refuses a step, or this host lacks a library.
    """
    wanted = audited(known)
    if what := difference(layout, wanted, ()):
        apply(layout, what, wanted)


def apply(layout: Layout, what: Difference, wanted: Mapping[str, Record]) -> None:
    """Add and drop the environments in *what*. If the program isn't attached, attach it.

    If the program wasn't attached, all audited environments are added, with new maps.

    :param wanted: records by name; they include all that are added.
    :raises OSError: the kernel refuses a step, or this host lacks a library.
    """
    add = {name: wanted[name] for name in what.add}
    fresh = bool(add) and not attached(layout)
    try:
        if fresh:
            end(layout)
            add = {**audited(records.read_each(layout)[0]), **add}
            _make_folder(layout)
        for name in what.drop:
            _drop(layout, name)
        for name, record in add.items():
            _add(layout, name, record)
        if fresh:
            _attach(layout)
    except OSError:
        if fresh:
            end(layout)
        raise
    if not names(layout):
        end(layout)


def end(layout: Layout) -> None:
    """Detach the program, and remove all maps and the file system."""
    place = folder(layout)
    ours = (one for one in _there(layout) if "." not in one)  # names with a dot are the kernel's
    for name in sorted(ours, key=lambda one: not one.startswith(_ATTACHED)):
        (place / name).unlink(missing_ok=True)
    mounts.unmount(place)
    with contextlib.suppress(FileNotFoundError):
        place.rmdir()


# -- what is there ------------------------------------------------------------
def _there(layout: Layout) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder(layout)))
    except FileNotFoundError:
        return frozenset()


def _names(there: Collection[str], which: str) -> set[str]:
    return {one.removeprefix(f"{which}-").partition("@")[0] for one in there if one.startswith(f"{which}-")}


def _kept_of(layout: Layout, which: str, name: str) -> list[Path]:
    """Return the paths of an environment's existing maps of one kind (*which*), whatever its settings were."""
    return [folder(layout) / one for one in sorted(_there(layout)) if one.partition("@")[0] == f"{which}-{name}"]


def _mark() -> str:
    """Return the file name of the attached program. It contains a digest, so that another version is attached again."""
    content = program.code(0, 0, 0) + b"".join(value for _, value in calls.looks(_built_in()))
    return f"{_ATTACHED}-{hashlib.sha256(content).hexdigest()[:16]}"


def _built_in() -> list[Mapping[str, Any]]:
    return [built_in(name) for name in seccomp.PROFILES]


def _led(layout: Layout, there: Collection[str], name: str, record: Record) -> bool:
    """Return whether an environment's refusals are recorded completely.

    The program must be attached, the environment's user ids must lead to its maps, and the arguments that its profile
    compares must be recorded.

    :param there: the names of the pinned maps.
    """
    if _mark() not in there or any(kept(layout, which, name, record).name not in there for which in MAPS):
        return False
    if record.profile is not None and not _compared(layout, record):
        return False
    for which in MAPS:
        with bpf.opened(folder(layout) / which) as owners, bpf.opened(kept(layout, which, name, record)) as own:
            if bpf.value(owners, program.owner(record.base), 4) != bpf.number(own).to_bytes(4, _ORDER):
                return False
    return True


def _compared(layout: Layout, record: Record) -> bool:
    """Return whether all system call arguments that the operator's own profile compares are recorded."""
    with bpf.opened(folder(layout) / _LOOKS) as looks:
        return all(not look & ~_look(looks, number) for number, look in _wanted(record))


def _wanted(record: Record) -> list[tuple[int, int]]:
    """Return pairs: a system call's number, and the bit mask of the arguments and properties to record of this call."""
    found = calls.looks([*_built_in(), rules(record)])
    return [(number, int.from_bytes(look, _ORDER)) for number, look in found]


def _look(looks: int, number: int) -> int:
    return int.from_bytes(bpf.value(looks, number.to_bytes(4, _ORDER), 4) or b"", _ORDER)


# -- changes --------------------------------------------------------------------
def _make_folder(layout: Layout) -> None:
    """Mount the BPF file system, and make the maps that the program itself needs."""
    place = folder(layout)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounts.mount(layout.instance, place, "bpf", mounts.NOSUID | mounts.NODEV | mounts.NOEXEC, "mode=0700")
    own = _own_map()
    try:
        for which in MAPS:
            _keep(bpf.create_map(bpf.HASH_OF_MAPS, f"{which}_of", 4, 4, RANGES, own), place / which)
    finally:
        os.close(own)
    looks = bpf.create_map(bpf.ARRAY, "looks", 4, 4, program.CALLS)
    for number, look in calls.looks(_built_in()):
        bpf.put(looks, number.to_bytes(4, _ORDER), look)
    _keep(looks, place / _LOOKS)


def _attach(layout: Layout) -> None:
    place = folder(layout)
    with bpf.opened(place / "calls") as owners, bpf.opened(place / "files") as files_of:
        with bpf.opened(place / _LOOKS) as looks:
            loaded = bpf.load_tracing("netspace_refused", program.code(owners, files_of, looks))
    try:
        _keep(bpf.attach("sys_exit", loaded), place / _mark())
    finally:
        os.close(loaded)


def _add(layout: Layout, name: str, record: Record) -> None:
    """Make empty maps for an environment, and let its user ids lead to them."""
    if record.profile is not None:
        _compare(layout, record)
    for which in MAPS:
        for path in _kept_of(layout, which, name):
            path.unlink(missing_ok=True)
        own = _own_map()
        try:
            bpf.put(own, program.REST, program.NOTHING)
            bpf.keep(own, kept(layout, which, name, record))
            with bpf.opened(folder(layout) / which) as owners:
                bpf.put(owners, program.owner(record.base), own.to_bytes(4, _ORDER))
        finally:
            os.close(own)


def _compare(layout: Layout, record: Record) -> None:
    """Let the recording program also record the system call arguments that the operator's own profile compares."""
    with bpf.opened(folder(layout) / _LOOKS) as looks:
        for number, look in _wanted(record):
            both = _look(looks, number) | look
            bpf.put(looks, number.to_bytes(4, _ORDER), both.to_bytes(4, _ORDER))


def _drop(layout: Layout, name: str) -> None:
    """Remove an environment's maps, and its user ids from the program's table of ids.

    The environment's record may be gone. So the ids to remove are those that lead to its map.
    """
    for which in MAPS:
        for path in _kept_of(layout, which, name):
            with bpf.opened(path) as own, bpf.opened(folder(layout) / which) as owners:
                number = bpf.number(own).to_bytes(4, _ORDER)
                for key in bpf.keys(owners, 4, RANGES):
                    if bpf.value(owners, key, 4) == number:
                        bpf.drop(owners, key)
            path.unlink()


def _own_map() -> int:
    return bpf.create_map(bpf.HASH, "refused", program.KEY, program.VALUE, program.MOST)


def _keep(descriptor: int, path: Path) -> None:
    """Pin an object at *path*, and close its descriptor."""
    try:
        bpf.keep(descriptor, path)
    finally:
        os.close(descriptor)
