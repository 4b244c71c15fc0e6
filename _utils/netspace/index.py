"""Notes of what the records of one kind say about the host as a whole, so that one change needn't decode them all.

Names, user ids, addresses or folders must be agreed on by all environments. Whoever changes one environment asks
an index for what the others have, and decodes only the records of those that it is about.

The records alone are the truth. An entry counts only while its record is the file that it was noted from: of the same
inode, size and times. Any other record is decoded, and noted by the next run that changes something. So an index that
is lost, damaged, of another version or of another time costs time, and never gives a wrong answer. It lies under
``/run``: a reboot ends it.
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

# A file system counts time in steps, of 10 ms at most: a record that is changed twice within one step may look the
# same. So a record is noted only once it is older than this (seconds).
_SETTLED = 0.05
_LARGEST = 64 * 1024 * 1024
_DIGEST = 65  # bytes of the file's first line

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

    :param kind: of the records, as for :meth:`netspace.layout.Layout.records`.
    :param form: the type of what is noted of one record.
    :param version: another one makes all entries void.
    :param claims: returns what is noted of the record of this name, by decoding it; None if it is gone.
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
        """Return what is noted of every record, by its name in order; those that aren't noted are decoded.

        :raises StateError: one of those can't be understood.
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
        """Write what is known of all records, if that was not noted yet. The caller holds the lock, since it read.

        Where that can't be done, the next run decodes what isn't noted, and tells what it can't understand.

        :param names: the records that the caller may have changed since.
        """
        with contextlib.suppress(StateError, OSError):
            self._note(names)

    def _note(self, names: Iterable[str]) -> None:
        if self._known is None:
            self.read()
        known = self._known or {}
        for name in names:
            known.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                stamp = _stamp(os.lstat(self._folder / f"{name}.json"))
                if (entry := self._decoded(name, stamp)) is not None:
                    known[name] = entry
        until = self._now() - int(_SETTLED * 1e9)
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
                        found[file[:-5]] = _stamp(entry.stat(follow_symlinks=False))
                    except FileNotFoundError:  # removed meanwhile
                        continue
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
        except (msgspec.DecodeError, RecursionError):  # of a version that noted something else
            return {}
        return noted.entries if noted.version == self._version else {}


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _digest(content: bytes) -> bytes:
    """Return the line that shows damage to the rest of the file."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n"
