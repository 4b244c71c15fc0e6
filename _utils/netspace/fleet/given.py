"""Slices of hosts in a fleet with ``apply: planned``, on the master's disk.

With this setting, a changed declaration has no effect on hosts by itself. A plan makes a *candidate* of it. Each host
gets its slice of the candidate when the plan is applied to that host. Until then the host keeps its present slice.

========================  ============================================================================================
``given/planned``         exists as long as changes wait for a plan
``given/<minion>.json``   the slice of one host, and its previous slice. Replaced by a rename
``candidates/<id>/``      the slices of a candidate; see :mod:`netspace.fleet.in_force`
========================  ============================================================================================

One file has everything about a host. So if the master is killed at any moment, the host has the old slice or the new
one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.fleet import in_force
from netspace.fleet.compile import Compiled
from netspace.fleet.in_force import REMEMBERED, Change, Inputs, Manifest, Store
from netspace.fleet.published import file_name

MAX_FILE = 64 * 1024 * 1024
NONE = "none"
"""The digest of a host that has no slice."""
_DIGITS = 16
_NULL = msgspec.Raw(b"null")


class Given(msgspec.Struct, frozen=True):
    """The slice that the master gives to one host, and the host's previous slice.

    :param digest: the digest of the slice; :data:`NONE`: the host gets none.
    :param slice: the host's pillar, in JSON.
    :param before: the digest of the previous slice; None: there is none to go back to.
    :param previous: the previous slice, in JSON.
    :param since: when the host was given the slice, in seconds since 1970.
    :param gone: names of environments that the host no longer has, with the time when it lost each.
    """

    minion: str
    digest: str
    slice: msgspec.Raw
    before: str | None = None
    previous: msgspec.Raw = _NULL
    since: float = 0.0
    gone: dict[str, float] = msgspec.field(default_factory=dict)
    version: int = 1


class Candidate(NamedTuple):
    """A compiled declaration that isn't in force.

    :param generation: the candidate's id.
    :param digests: the digest of each minion's slice.
    """

    generation: str
    digests: dict[str, str]


def encoded(pillar: Mapping[str, Any] | None) -> bytes | None:
    """Return a slice as bytes of JSON, as it is stored; None for no slice."""
    return None if pillar is None else msgspec.json.encode(pillar)


def digest(raw: bytes | msgspec.Raw) -> str:
    """Return the digest of a slice."""
    return hashlib.sha256(bytes(raw)).hexdigest()[:_DIGITS]


class GivenSlices:
    """The store of given slices and candidates in *folder*, which only the master's user can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "given"
        self._marker = self.folder / "planned"
        self._candidates = folder / "candidates"

    # -- what is in force --------------------------------------------------------
    def active(self) -> bool:
        """Return whether changes wait for a plan."""
        return self._marker.exists()

    def begin(self, slices: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin the mode ``apply: planned``: from now on, hosts get changes only by plans.

        The caller holds the lock.

        :param slices: the slice of each host at the beginning, by minion.
        :raises OSError: a file can't be written. In this case nothing has changed.
        """
        made = {}
        for minion, pillar in slices.items():
            raw = msgspec.json.encode(pillar)
            made[self._path(minion)] = msgspec.json.encode(Given(minion, digest(raw), msgspec.Raw(raw)))
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():  # of an earlier time
            if path not in made:
                files.remove(path)
        _, failed = files.write_all(made)
        for error in failed.values():
            raise error
        files.write(self._marker, b"")

    def end(self) -> None:
        """End the mode ``apply: planned``: a changed declaration is in force at once. The caller holds the lock."""
        files.remove(self._marker)
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, minion: str) -> Given | None:
        """Return the slices that are stored for a host; None if it was never given one.

        :raises StateError: the file is damaged.
        """
        path = self._path(minion)
        try:
            found = msgspec.json.decode(files.read(path, MAX_FILE), type=Given)
            if found.minion != minion or (found.digest != NONE and found.digest != digest(found.slice)):
                raise ValueError("it belongs to another minion, or was edited")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as err:
            raise StateError(f"{path}: {err}; plan and apply to this host again") from err
        return found

    def pillar(self, minion: str) -> dict[str, Any] | None:
        """Return a minion's pillar: its slice, and the facts from ``trust.noted``; None if it has no slice.

        :raises StateError: the minion's file is damaged.
        """
        found = self.read(minion)
        return _decoded(found.slice) if found is not None else None

    def all(self) -> list[Given]:
        """Return the slices that are stored for each host, the newest first. A damaged file counts as absent."""
        found = []
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, StateError):
                one = self.read(msgspec.json.decode(files.read(path, MAX_FILE), type=Given).minion)
                if one is not None and self._path(one.minion) == path:
                    found.append(one)
        return sorted(found, key=lambda one: -one.since)

    def pillars(self) -> dict[str, dict[str, Any]]:
        """Return the result of :meth:`pillar` for each minion that has a slice."""
        return {one.minion: pillar for one in self.all() if (pillar := _decoded(one.slice)) is not None}

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the slice of each minion that has one, as it stands under ``netspace`` in the pillar."""
        return {minion: pillar["netspace"] for minion, pillar in self.pillars().items()}

    def placed(self) -> dict[str, tuple[str, ...]]:
        """Return the hosts of each environment. The host whose slice is newest comes first."""
        found: dict[str, list[str]] = {}
        for section in self.sections().values():
            for name in section.get("environments", ()):
                found.setdefault(name, []).append(section["broker"]["host"])
        return {name: tuple(hosts) for name, hosts in found.items()}

    def remembered(self) -> dict[str, tuple[str, ...]]:
        """Return the last hosts of environments that now run nowhere. Each is forgotten after some time."""
        found: dict[str, list[str]] = {}
        placed = self.placed()
        for one in self.all():
            pillar = _decoded(one.slice) or _decoded(one.previous)
            if pillar is None:
                continue
            for name, since in one.gone.items():
                if name not in placed and time.time() - since < REMEMBERED:
                    found.setdefault(name, []).append(pillar["netspace"]["broker"]["host"])
        return {name: tuple(hosts) for name, hosts in found.items()}

    def claimed(self) -> dict[str, str]:
        """Return the former name of each renamed environment in the present slices."""
        return in_force.former_names(self.sections().values())

    # -- changes: the caller holds the lock -----------------------------------------
    def promote(self, minion: str, raw: bytes | None, expected: str) -> bool:
        """Give a host another slice; return False if it had that slice already.

        :param raw: the slice; None: the host gets no slice any more.
        :param expected: the digest of the host's present slice.
        :raises NetspaceError: the host's present slice is another.
        """
        old = self._readable(minion)
        new = NONE if raw is None else digest(raw)
        if old.digest == new:
            return False
        if old.digest != expected:
            raise NetspaceError(f"{minion}: the host got another slice in the meantime; plan again")
        self._write(old, new, _NULL if raw is None else msgspec.Raw(raw), old.digest, old.slice)
        return True

    def take_back(self, minion: str, given: str, before: str) -> bool:
        """Give a host its previous slice again; return False if the host has it already.

        :param given: the digest of the slice to take from the host.
        :param before: the digest of the previous slice.
        :raises NetspaceError: the previous slice isn't kept, or the host was given another slice meanwhile.
        """
        old = self._readable(minion)
        if old.digest == before:
            return False
        if old.digest != given:
            raise NetspaceError(f"{minion}: the host got another slice in the meantime, and keeps it; plan again")
        if old.before != before:
            raise NetspaceError(f"{minion}: its previous slice was deleted; change the declaration, and plan again")
        self._write(old, before, old.previous, None, _NULL)
        return True

    def cut(self, change: Change) -> None:
        """Change all present and previous slices by the function *change*.

        All candidates are deleted, because they still contain the parts that *change* removes.
        """
        self.forget(())
        known = {one.minion: one for one in self.all()}
        made = dict(known)
        for which in ("slice", "previous"):
            pillars = {minion: _decoded(getattr(one, which)) for minion, one in known.items()}
            there = {minion: pillar["netspace"] for minion, pillar in pillars.items() if pillar is not None}
            for minion, section in change(there).items():
                raw = msgspec.json.encode({**(pillars[minion] or {}), "netspace": section})
                if which == "slice":
                    made[minion] = msgspec.structs.replace(made[minion], slice=msgspec.Raw(raw), digest=digest(raw))
                else:
                    made[minion] = msgspec.structs.replace(made[minion], previous=msgspec.Raw(raw), before=digest(raw))
        for minion, one in made.items():  # one write for both slices, so that a kill can't leave an uncut previous one
            if one is not known[minion]:
                files.write(self._path(minion), msgspec.json.encode(one))

    def _write(self, old: Given, new: str, raw: msgspec.Raw, before: str | None, previous: msgspec.Raw) -> None:
        had, has, now = _environments(old.slice), _environments(raw), time.time()
        gone = {name: since for name, since in old.gone.items() if name not in has and now - since < REMEMBERED}
        gone |= dict.fromkeys(sorted(had - has), now)
        made = Given(old.minion, new, raw, before, previous, now, gone)
        files.write(self._path(old.minion), msgspec.json.encode(made))

    def _readable(self, minion: str) -> Given:
        """Return the slices that are stored for a host; an empty record if its file is absent or damaged."""
        with contextlib.suppress(StateError):
            if (found := self.read(minion)) is not None:
                return found
        return Given(minion, NONE, _NULL)

    def digest_of(self, minion: str) -> str:
        """Return the digest of a host's slice; :data:`NONE` if the host has none, or its file is damaged."""
        return self._readable(minion).digest

    def has(self, minion: str, pillar: Mapping[str, Any] | None) -> bool:
        """Return whether *pillar* is the host's present slice; None means no slice."""
        return self.digest_of(minion) == (NONE if pillar is None else digest(msgspec.json.encode(pillar)))

    # -- candidates -------------------------------------------------------------------
    def keep(self, compiled: Compiled, inputs: Inputs) -> Candidate:
        """Keep a compiled declaration as a candidate. The caller holds the lock."""
        aside = self._candidates / ".new"
        shutil.rmtree(aside, ignore_errors=True)
        manifest = Store(aside).commit(compiled, inputs)
        made = self._candidates / manifest.generation
        if self.candidate(manifest.generation) is None:
            shutil.rmtree(made, ignore_errors=True)
            aside.rename(made)
        shutil.rmtree(aside, ignore_errors=True)
        digests = {minion: digest(msgspec.json.encode(pillar)) for minion, pillar in compiled.slices.items()}
        return Candidate(manifest.generation, digests)

    def candidate(self, generation: str) -> Manifest | None:
        """Return the manifest of a candidate; None if it isn't kept."""
        return in_force.store(self._candidates / generation).current().manifest

    def candidate_slice(self, generation: str, minion: str) -> dict[str, Any] | None:
        """Return a minion's slice of a candidate; None if the minion is no host of that candidate.

        :raises NetspaceError: the candidate isn't kept.
        """
        manifest = self.candidate(generation)
        if manifest is None:
            raise NetspaceError(f"the candidate {generation:.16} was deleted, or never existed; plan again")
        return in_force.store(self._candidates / generation).slice(manifest, minion)

    def forget(self, but: Collection[str]) -> None:
        """Remove all candidates except those with the ids in *but*."""
        for path in self._candidates.iterdir() if self._candidates.is_dir() else ():
            if path.name not in but:
                shutil.rmtree(path, ignore_errors=True)

    def settle(self, generation: str, minions: Iterable[str], store: Store) -> bool:
        """Put a candidate in force as a whole if all minions have their slices of it; return whether they do.

        This also ends the mode ``apply: planned``. The caller holds the lock.
        """
        manifest = self.candidate(generation)
        if manifest is None or set(minions) != manifest.slices.keys():
            return False
        for minion in manifest.slices:
            if self.digest_of(minion) != digest(msgspec.json.encode(self.candidate_slice(generation, minion))):
                return False
        for path in (self._candidates / generation).iterdir():
            if path.name != "in-force.json":
                files.write(store.folder / path.name, files.read(path))
        files.write(store.folder / "in-force.json", msgspec.json.encode(manifest))
        self.end()
        return True

    def _path(self, minion: str) -> Path:
        return self.folder / file_name(minion)


def _decoded(raw: msgspec.Raw) -> dict[str, Any] | None:
    found: dict[str, Any] | None = msgspec.json.decode(raw)
    return found


def _environments(raw: msgspec.Raw) -> set[str]:
    pillar = _decoded(raw)
    return set(pillar["netspace"].get("environments", ())) if pillar is not None else set()
