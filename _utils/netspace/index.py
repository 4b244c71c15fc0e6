"""Index of the records of one kind: a cache of the values that must be unique or consistent across the host.

Such values are names, user ids, addresses and folders. A change of one environment takes the values of all others from
the index, and decodes only the affected records.

The records are authoritative. An index entry is valid only while its record is the same file: same inode, size and
times. A record without a valid entry is decoded, and the next run that changes something adds it to the index. So a
lost, damaged or outdated index costs time, but never gives a wrong answer. The same holds for an index of another
version. The index lies under ``/run``, so a reboot removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout, below

# A file system counts time in steps of at most 10 ms: a record may look the same after a second change within a step.
# So the index takes a record only once it is older than this (seconds).
SETTLED = 0.05
_LARGEST = 64 * 1024 * 1024
_DIGEST = 65  # length of the file's first line in bytes

T = TypeVar("T")
Stamp = tuple[int, int, int, int]


class _Entry(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    stamp: Stamp
    claims: T


class _File(msgspec.Struct, Generic[T], frozen=True):
    version: str
    entries: dict[str, _Entry[T]]


class Index(Generic[T]):
    """The index of one kind's records.

    :param kind: the kind of the records, as for :meth:`netspace.layout.Layout.records`.
    :param form: the type of an entry's value.
    :param version: the version of the entries; an index of another version is ignored.
    :param claims: decodes the record of this name and returns the value for its entry; None if the record is gone.
    :param now: the clock, in nanoseconds since the epoch; only tests set it.
    """

    def __init__(
        self,
        layout: Layout,
        kind: str,
        form: type[T],
        version: str,
        claims: Callable[[str], T | None],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = layout.records(kind)
        self._path = below(layout.run / "index", f"{kind}.json")
        self._form = form
        self._version = version
        self._claims = claims
        self._now = now
        self._noted: dict[str, _Entry[T]] = {}
        self._known: dict[str, _Entry[T]] | None = None

    def read(self) -> dict[str, T]:
        """Return the value of every record, ordered by the record's name; decode records without a valid entry.

        :raises StateError: a record can't be decoded.
        """
        self._noted = self._read()
        known = {}
        for name, stamp in sorted(self._stamps().items()):
            entry = self._noted.get(name)
            if entry is None or entry.stamp != stamp:
                entry = self._decoded(name, stamp)
            if entry is not None:
                known[name] = entry
        self._known = known
        return {name: entry.claims for name, entry in known.items()}

    def note(self, names: Iterable[str] = ()) -> None:
        """Write the index if it is out of date. The caller must have held the lock since :meth:`read`.

        This ignores errors: the next run decodes the records without an entry, and reports its errors.

        :param names: the records that the caller may have changed since :meth:`read`.
        """
        with contextlib.suppress(StateError, OSError):
            self._note(names)

    def _note(self, names: Iterable[str]) -> None:
        if self._known is None:
            self.read()
            names = ()  # they were read just now, after the changes
        known = self._known or {}
        for name in names:
            known.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                stamp = _stamp(os.stat(self._folder / f"{name}.json"))
                if (entry := self._decoded(name, stamp)) is not None:
                    known[name] = entry
        until = self._now() - int(SETTLED * 1e9)
        kept = {name: entry for name, entry in known.items() if max(entry.stamp[2:]) < until}
        if kept != self._noted:
            content = msgspec.json.encode(_File(self._version, kept))
            files.write(self._path, _digest(content) + content)
            self._noted = kept

    def _decoded(self, name: str, stamp: Stamp) -> _Entry[T] | None:
        claims = self._claims(name)
        return None if claims is None else _Entry(stamp, claims)

    def _stamps(self) -> dict[str, Stamp]:
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

    def _read(self) -> dict[str, _Entry[T]]:
        try:
            whole = files.read(self._path, _LARGEST)
        except OSError:
            return {}
        content = whole[_DIGEST:]
        if whole[:_DIGEST] != _digest(content):
            return {}
        try:
            noted = msgspec.json.decode(content, type=_File[self._form])  # type: ignore[name-defined]
        except (msgspec.DecodeError, RecursionError):  # made by a version that noted other values
            return {}
        return noted.entries if noted.version == self._version else {}


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _digest(content: bytes) -> bytes:
    """Return the file's first line: the digest of the rest, which shows damage."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n"
