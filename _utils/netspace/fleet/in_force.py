"""The compiled declaration that is in force, on the master's disk.

A declaration is compiled once for all minions and all processes of the master. After that, a request only compares the
times of the declaration's files, and reads one slice. A declaration with problems replaces nothing: the last good one
stays in force. The problems are stored, too, so that they are reported once and not compiled again for each request.

=====================  ==================================================================================
``in-force.json``      the inputs' times, and where the slice of each minion lies. Replaced last, by a rename
``slices-<id>``        the slices, one after the other
``placed-<id>.json``   the hosts of each environment; ``placed-<id>.copy`` is a copy of it
``gone-<id>.json``     the last hosts of environments that run nowhere any more, for some time
``refused.json``       the newest declaration that was refused: its inputs and problems
=====================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.fleet.compile import Compiled
from netspace.fleet.types import Problem
from netspace.spec import renames

T = TypeVar("T")

Stamp = tuple[int, ...] | None
"""Time of the content's change (ns), size, inode, and time of any change (ns) of a file; None: there is no file.

A record of an earlier version has no time of any change, so it equals no present stamp."""

Change = Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, Mapping[str, Any]]]
"""A function that returns changed slices. Slices are given by minion, as they stand under ``netspace``."""

MAX_REFUSED = 100
"""The greatest number of problems that are kept."""
SETTLED = 20_000_000
"""Nanoseconds after which another change of a file has another time: two ticks of the slowest kernel clock (100 Hz)."""
UNCHANGED = 2_000_000_000
"""Nanoseconds for which a file must be unchanged before its content is used, since it may be half-written."""
REMEMBERED = 30 * 24 * 3600
"""Seconds for which the hosts of an environment are remembered after it is gone, so that it returns to its mailbox."""
MAX_REMEMBERED = 20_000
_MOST = 1 << 30


class Inputs(msgspec.Struct, frozen=True):
    """The files and settings from which a declaration was compiled.

    :param files: the stamp of each file, by its path.
    :param names: the path of each file, by its name in the declaration; None: there was no such file.
    :param context: a digest of all other inputs.
    """

    files: dict[str, Stamp]
    names: dict[str, str | None]
    context: str


class Gone(msgspec.Struct, frozen=True):
    """The last hosts of an environment that now runs nowhere.

    :param since: when it disappeared from the declaration, in seconds since 1970.
    """

    hosts: tuple[str, ...]
    since: float


class Manifest(msgspec.Struct, frozen=True):
    """The content of ``in-force.json``.

    :param generation: the id in the names of the other files.
    :param inputs: the files and settings that were compiled.
    :param slices: for each minion, the offset of its slice in ``slices-<id>``, and the length in bytes.
    """

    generation: str
    inputs: Inputs
    slices: dict[str, tuple[int, int]]
    version: int = 1


class Refusal(msgspec.Struct, frozen=True):
    """The content of ``refused.json``.

    :param problems: the first problems; each has a file, a path in the declaration, and a reason.
    :param count: the number of all problems.
    :param since: when it was refused, in seconds since 1970.
    """

    inputs: Inputs
    problems: tuple[tuple[str, str, str], ...]
    count: int
    since: float
    version: int = 1


class Current(NamedTuple):
    """The declaration in force and the last refusal; None for each that doesn't exist."""

    manifest: Manifest | None
    refusal: Refusal | None


@functools.lru_cache(8)
def store(folder: Path) -> Store:
    """Return the store for a folder. A process has one store per folder, which caches decoded files."""
    return Store(folder)


def former_names(sections: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the former name of each renamed environment in *sections*, the slices of hosts."""
    environments = ((name, body) for one in sections for name, body in one.get("environments", {}).items())
    return {name: body[renames.KEY] for name, body in environments if renames.KEY in body}


class Store:
    """The compiled declaration that is stored in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest, self._refused = folder / "in-force.json", folder / "refused.json"
        self._seen: dict[Path, tuple[Stamp, Any]] = {}
        self.paused = 0.0  # until when nothing is compiled, by time.monotonic

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock under which a declaration is compiled and stored."""
        return files.locked(self.folder / ".lock")

    def current(self) -> Current:
        """Return the declaration in force, and the last refusal.

        A damaged file counts as absent, since the next compilation makes it again.
        """
        return Current(self._known(self._manifest, Manifest), self._known(self._refused, Refusal))

    def slice(self, manifest: Manifest, minion: str) -> dict[str, Any] | None:
        """Return a minion's pillar: its slice, and the facts from ``trust.noted``; None if it is no host.

        :raises StateError: the slices are damaged.
        """
        place = manifest.slices.get(minion)
        if place is None:
            return None
        path = self.folder / f"slices-{manifest.generation}"
        try:
            with open(path, "rb") as stream:
                raw = os.pread(stream.fileno(), place[1], place[0])
            found: dict[str, Any] = msgspec.json.decode(raw)
        except (OSError, ValueError) as err:
            raise StateError(f"{path}: {err}; remove {self._manifest} to compile it again") from err
        return found

    def pillars(self, manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each minion with its pillar: its slice, and the facts from ``trust.noted``.

        :raises StateError: the slices are damaged.
        """
        for minion in manifest.slices:
            yield minion, self.slice(manifest, minion) or {}

    def sections(self, manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each minion with its slice, as it stands under ``netspace`` in the pillar.

        :raises StateError: the slices are damaged.
        """
        for minion, pillar in self.pillars(manifest):
            yield minion, pillar["netspace"]

    def cut(self, change: Change) -> None:
        """Change only the slices in force, by the function *change*; the caller holds the lock.

        :raises StateError: the slices are damaged.
        """
        manifest = self.current().manifest
        if manifest is not None:
            before = dict(self.pillars(manifest))
            changed = change({minion: one["netspace"] for minion, one in before.items()})
            slices = {minion: {**before[minion], "netspace": section} for minion, section in changed.items()}
            try:
                placed = self.placed()
            except StateError:
                placed = None  # an unreadable file must not keep a host in the fleet
            self._put(slices, placed, self._gone(), manifest.inputs)

    def placed(self) -> dict[str, tuple[str, ...]]:
        """Return the hosts of each environment in the declaration in force; empty if none was ever in force.

        Without these hosts, environments would move. So a copy replaces a damaged file, even if the other files in
        force are damaged, too.

        :raises StateError: the file and its copy are damaged.
        """
        manifest = self.current().manifest
        if manifest is not None:
            found = [self.folder / f"placed-{manifest.generation}{end}" for end in (".json", ".copy")]
        elif self._manifest.exists():
            found = sorted(self.folder.glob("placed-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        else:
            return {}
        for path in found:
            with contextlib.suppress(OSError, ValueError):
                return msgspec.json.decode(files.read(path, _MOST), type=dict[str, tuple[str, ...]])
        raise StateError(
            f"{self.folder}: the file that says where environments run is damaged, and so is its copy; restore one "
            f"from a backup, or remove {self._manifest} to have all environments placed anew"
        )

    def remembered(self) -> dict[str, tuple[str, ...]]:
        """Return the last hosts of environments that run nowhere any more."""
        return {name: one.hosts for name, one in self._gone().items()}

    def claimed(self) -> dict[str, str]:
        """Return the former name of each renamed environment in force; empty if the slices are damaged."""
        manifest = self.current().manifest
        if manifest is not None:
            with contextlib.suppress(StateError):
                return former_names(section for _, section in self.sections(manifest))
        return {}

    def commit(self, compiled: Compiled, inputs: Inputs) -> Manifest:
        """Put a compiled declaration in force; the caller holds the lock.

        If the process is killed meanwhile, the old declaration stays in force.
        """
        gone = {name: Gone(hosts, time.time()) for name, hosts in self.placed().items()} | self._gone()
        gone = {name: one for name, one in gone.items() if name not in compiled.placed}
        newest = sorted(gone, key=lambda name: gone[name].since, reverse=True)[:MAX_REMEMBERED]
        made = self._put(compiled.slices, compiled.placed, {name: gone[name] for name in sorted(newest)}, inputs)
        files.remove(self._refused)
        return made

    def _put(
        self,
        slices: Mapping[str, Mapping[str, Any]],
        placed: Mapping[str, tuple[str, ...]] | None,
        gone: Mapping[str, Gone],
        inputs: Inputs,
    ) -> Manifest:
        """Write the files of a declaration that comes in force.

        :param placed: the hosts of each environment. None: they are unknown, because the present file is damaged. Then
            the new file is written without hosts, in a form that readers treat as damaged, so that nobody takes it for
            "no environment runs anywhere".
        :param gone: the last hosts of environments that now run nowhere.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts, places, at = [], {}, 0
        for minion, pillar in slices.items():
            raw = msgspec.json.encode(pillar)
            parts.append(raw)
            places[minion] = (at, len(raw))
            at += len(raw)
        contents = {"slices-{}": b"".join(parts)}
        contents |= dict.fromkeys(
            ("placed-{}.json", "placed-{}.copy"), b"damaged" if placed is None else msgspec.json.encode(placed)
        )
        contents["gone-{}.json"] = msgspec.json.encode(gone)
        generation = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
        for name, content in contents.items():
            files.write(self.folder / name.format(generation), content)
        manifest = Manifest(generation, inputs, places)
        files.write(self._manifest, msgspec.json.encode(manifest))
        for path in self.folder.iterdir():
            if path.name.startswith(("slices-", "placed-", "gone-")) and generation not in path.name:
                files.remove(path)
        return manifest

    def _gone(self) -> dict[str, Gone]:
        found = self._beside("gone", dict[str, Gone])
        return {name: one for name, one in found.items() if time.time() - one.since < REMEMBERED}

    def _beside(self, what: str, of: type[T]) -> T:
        """Return the decoded content of a file (such as ``gone``) of the declaration in force.

        If the file is absent or damaged, the result is empty.
        """
        manifest = self.current().manifest
        if manifest is not None:
            with contextlib.suppress(OSError, ValueError):
                return msgspec.json.decode(
                    files.read(self.folder / f"{what}-{manifest.generation}.json", _MOST), type=of
                )
        return of()

    def forget(self) -> None:
        """Delete the declaration in force and the last refusal, because something else is in force now."""
        files.remove(self._manifest)
        files.remove(self._refused)

    def refuse(self, problems: tuple[Problem, ...], inputs: Inputs) -> Refusal:
        """Store the refusal of a declaration with problems; the caller holds the lock."""
        refusal = refused(problems, inputs)
        files.write(self._refused, msgspec.json.encode(refusal))
        return refusal

    def _known(self, path: Path, of: type[Any]) -> Any:
        """Return the decoded content of a file; None if the file is absent or damaged.

        It is decoded again only after the file has changed.
        """
        now = stamp(path)
        before = self._seen.get(path)
        if before is None or before[0] != now:
            found = None
            with contextlib.suppress(OSError, ValueError):
                found = msgspec.json.decode(files.read(path, _MOST), type=of) if now is not None else None
            before = self._seen[path] = (now, found)
        return before[1]


def refused(problems: tuple[Problem, ...], inputs: Inputs) -> Refusal:
    """Make the refusal of a declaration with these problems."""
    kept = tuple((one.file, one.path, one.reason) for one in problems[:MAX_REFUSED])
    return Refusal(inputs, kept, len(problems), time.time())


def stamp(path: Path | str) -> Stamp:
    """Return the stamp (times, size, inode) of a file or folder; None if it doesn't exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


def settled(path: Path | str) -> Stamp:
    """Return a file's stamp such that every later change of the file changes the stamp.

    A file that has just changed may change again within the same tick of the kernel's clock, without a new stamp. In
    this case, the function first waits for the next tick.
    """
    found = stamp(path)
    while found is not None and 0 <= time.time_ns() - found[-1] < SETTLED:
        time.sleep(SETTLED / 1e9)
        found = stamp(path)
    return found


def unchanged(paths: Iterable[str]) -> bool:
    """Return whether none of the files has changed within the last ``UNCHANGED`` nanoseconds.

    A time of change in the future counts as long ago.
    """
    stamps = [stamp(path) for path in paths]
    return not any(one is not None and 0 <= time.time_ns() - one[0] < UNCHANGED for one in stamps)


def fresh(inputs: Inputs, context: str, find: Callable[[str], str | None]) -> bool:
    """Return whether no input has changed since a declaration was compiled.

    :param find: returns the path of a file by its name in the declaration.
    """
    if inputs.context != context:
        return False
    if any(find(name) != path for name, path in inputs.names.items()):
        return False
    return all(stamp(path) == known for path, known in inputs.files.items())


def context(*parts: Mapping[str, object] | str) -> str:
    """Return a digest of all inputs of a compilation that aren't files."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
