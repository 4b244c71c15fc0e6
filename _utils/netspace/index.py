"""Index of the records of one kind: a cache of the values that must be unique or consistent across the host.

Such values are names, user ids, addresses and folders. A change of one environment takes the values of all others from
the index, and decodes only the affected records.

The records are authoritative. There are two ways to check the index against them:

* *Thoroughly*: an entry is valid only while its record is the same file: same inode, size and times. A record without
  a valid entry is decoded, and the next run that changes something adds it to the index.
* *By the seal*: the run that writes the index gives the records' folder a time of its own, and notes it. Whoever
  creates, replaces or removes a record afterwards changes that time. While the time is the noted one, all entries are
  valid. This takes as long for ten thousand records as for one. It can't see that a program overwrites a record in
  place, which netspace never does. Without a valid seal, the check is thorough.

So a lost, damaged or outdated index costs time, but never gives a wrong answer. The same holds for an index of another
version. The index lies under ``/run``, so a reboot removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from netspace import files, folder_watch
from netspace.errors import StateError
from netspace.layout import Layout, below

# A file system counts time in steps of at most 10 ms: a record may look the same after a second change within a step.
# So the index takes a record only once it is older than this (seconds).
SETTLED = 0.05
_LARGEST = 64 * 1024 * 1024
_DIGEST = 65  # length of the file's first line in bytes

T = TypeVar("T")
Stamp = tuple[int, int, int, int]


_Stamps = dict[str, Stamp]
_stamps_of = msgspec.json.Decoder(_Stamps).decode


class _File(msgspec.Struct, Generic[T], frozen=True, omit_defaults=True):
    """The index's file.

    :param claims: the value of each record.
    :param stamps: the stamp of each record, not decoded: only a thorough check and a change need them.
    :param seal: the stamp of the records' folder, if the claims are those of all its records.
    :param young: the records that were too young to be noted. Their claims are valid by the seal only.
    :param weight: the sum of all records' weights, hexadecimal.
    """

    version: str
    claims: dict[str, T]
    stamps: msgspec.Raw = msgspec.Raw(b"{}")
    seal: Stamp | None = None
    young: list[str] = []
    weight: str = ""


class Index(Generic[T]):
    """The index of one kind's records.

    :param kind: the kind of the records, as for :meth:`netspace.layout.Layout.records`.
    :param form: the type of an entry's value.
    :param version: the version of the entries; an index of another version is ignored.
    :param claims: decodes the record of this name and returns the value for its entry; None if the record is gone.
    :param now: the clock, in nanoseconds since the epoch; only tests set it.
    :param weigh: returns a number for a record's name and value; see :meth:`weight`.
    """

    def __init__(
        self,
        layout: Layout,
        kind: str,
        form: type[T],
        version: str,
        claims: Callable[[str], T | None],
        now: Callable[[], int] = time.time_ns,
        weigh: Callable[[str, T], int] = lambda name, value: 0,
    ) -> None:
        self._folder = layout.records(kind)
        self._path = below(layout.run / "index", f"{kind}.json")
        self._form = form
        self._version = version
        self._claims = claims
        self._now = now
        self._weigh = weigh
        self._weight: int | None = None
        self._noted: _File[T] = _File(version, {})
        self._known: dict[str, T] | None = None
        self._stamped: _Stamps | None = None  # the stamps of `_known`; None: those of `_noted`
        self._decoded: _Stamps | None = None  # the noted stamps, once they were needed
        self._seen: Stamp | None = None  # the records' folder when `_known` was read; None: it changed meanwhile
        self._fresh: set[str] = set()  # records that may be too young to be noted
        self._watch: folder_watch.Watch | None = None

    def read(self, *, sealed: bool = False) -> dict[str, T]:
        """Return the value of every record, ordered by the record's name; decode records without a valid entry.

        :param sealed: the seal suffices.
        :raises StateError: a record can't be decoded.
        """
        self._noted, self._decoded = self._read(), None
        self._seen = _stamp_at(self._folder)  # in this order: a seal of before would not be that of the folder any more
        if sealed and self._seen is not None and self._seen == self._noted.seal:
            self._known, self._stamped = self._noted.claims, None
            self._fresh = set(self._noted.young)
            self._weight = int(self._noted.weight or "0", 16)
        else:
            self._known, self._stamped = self._thorough()
            self._weight = None
            if _stamp_at(self._folder) != self._seen:
                self._seen = None
        return dict(self._known)

    def weight(self) -> int:
        """Return the sum of the weights of all records that :meth:`read` found."""
        if self._weight is None:
            self._weight = sum(self._weigh(name, claims) for name, claims in (self._known or {}).items())
        return self._weight

    def _valid_stamps(self) -> _Stamps:
        """Return the stamps of the records that :meth:`read` found. By the seal, they are the noted ones."""
        return self._noted_stamps() if self._stamped is None else self._stamped

    def _noted_stamps(self) -> _Stamps:
        if self._decoded is None:
            self._decoded = _stamps_of(self._noted.stamps)
        return self._decoded

    def _thorough(self) -> tuple[dict[str, T], _Stamps]:
        noted, stamps, young = self._noted.claims, self._noted_stamps(), set(self._noted.young)
        known, valid = {}, {}
        self._fresh = set()
        for name, stamp in sorted(self._stamps().items()):
            claims = noted.get(name)
            if claims is None or stamps.get(name) != stamp or name in young:
                claims = self._claims(name)
                self._fresh.add(name)
            if claims is not None:
                known[name], valid[name] = claims, stamp
        return known, valid

    def begin(self) -> None:
        """Watch the records' folder until :meth:`note` or :meth:`end`, so that the index can be sealed.

        To be called after :meth:`read` and before the caller changes the first record, with the lock held. Another
        program's change in between then costs the seal.
        """
        self.end()
        seen = self._seen
        if seen is None or self._known is None or (watch := folder_watch.begin(self._folder)) is None:
            return
        self._watch = watch
        same = _stamp_at(self._folder) == seen
        if same and seen != self._noted.seal:
            # A file system counts time in steps, so this folder may have changed within the step in which it was read.
            same = self._stamps() == self._valid_stamps()
        if not same:
            self.end()

    def end(self) -> None:
        """Watch no longer. To be called if the run that :meth:`begin` was for ended without :meth:`note`."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def note(self, names: Iterable[str] = ()) -> None:
        """Write the index if it is out of date. The caller must have held the lock since :meth:`read`.

        This ignores errors: the next run decodes the records without an entry, and reports its errors.

        :param names: the records that the caller may have changed since :meth:`read`.
        """
        try:
            with contextlib.suppress(StateError, OSError):
                self._note(set(names))
        finally:
            self.end()

    def _note(self, names: set[str]) -> None:
        if self._known is None:
            self.read()
            names = set()  # they were read just now, after the changes
        known, stamps = dict(self._known or {}), dict(self._valid_stamps())
        added, gone, come = False, 0, 0
        for name in names:
            added = added or name not in known
            stamps.pop(name, None)
            if (old := known.pop(name, None)) is not None:
                gone += self._weigh(name, old)
            with contextlib.suppress(FileNotFoundError):
                stamp = _stamp(os.stat(self._folder / f"{name}.json"))
                if (claims := self._claims(name)) is not None:
                    known[name], stamps[name] = claims, stamp
                    come += self._weigh(name, claims)
        if added:
            known = {name: known[name] for name in sorted(known)}
        self._fresh |= names
        until = self._now() - int(SETTLED * 1e9)
        young = sorted(name for name in self._fresh & known.keys() if max(stamps[name][2:]) >= until)
        same = known == self._noted.claims and stamps == self._noted_stamps()
        seal = self._sealed(names, stamps, same)
        if seal is None:
            for name in young:
                del known[name], stamps[name]
            young = []
        weight = self.weight() - gone + come if seal is not None else 0
        text = msgspec.Raw(msgspec.json.encode(stamps))
        new = _File(self._version, known, text, seal, young, f"{weight:x}" if weight else "")
        if new != self._noted:
            content = msgspec.json.encode(new)
            files.write(self._path, _digest(content) + content)
            self._noted, self._decoded = new, stamps

    def _sealed(self, names: set[str], stamps: _Stamps, same: bool) -> Stamp | None:
        """Seal the records' folder; return its stamp, or None if it may have changed by others since it was read.

        :param same: nothing differs from what is noted.
        """
        seal = self._noted.seal
        if seal is not None and same and _stamp_at(self._folder) == seal:
            return seal
        if self._watch is None:
            return None
        now = time.time_ns()
        os.utime(self._folder, ns=(now, now))
        seal = _stamp_at(self._folder)
        for name in names:
            if _stamp_at(self._folder / f"{name}.json") != stamps.get(name):
                return None
        return seal if self._watch.touched(names) else None

    def _stamps(self) -> _Stamps:
        """Return the stamps of the records that exist."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                file = entry.name
                if file.endswith(".json") and not file.startswith("."):
                    try:
                        info = entry.stat()
                    except FileNotFoundError:  # removed meanwhile
                        continue
                    # Without a call, since this is done for each record of the host at each change.
                    found[file[:-5]] = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        return found

    def _read(self) -> _File[T]:
        nothing: _File[T] = _File(self._version, {})
        try:
            whole = files.read(self._path, _LARGEST)
        except OSError:
            return nothing
        content = whole[_DIGEST:]
        if whole[:_DIGEST] != _digest(content):
            return nothing
        try:
            noted: _File[T] = msgspec.json.decode(content, type=_File[self._form])  # type: ignore[name-defined]
        except (msgspec.DecodeError, RecursionError):  # made by a version that noted other values
            return nothing
        return noted if noted.version == self._version else nothing


def without(known: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """Return *known* without these names. The time depends on *names* alone, but for a copy."""
    left = dict(known)
    for name in names:
        left.pop(name, None)
    return left


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _stamp_at(path: Path) -> Stamp | None:
    """Return the stamp of a record or of the records' folder; None if there is none."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _digest(content: bytes) -> bytes:
    """Return the file's first line: the digest of the rest, which shows damage."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n"
