"""Notes of what the records of one kind say about the host as a whole, so that one change needn't decode them all.

Names, user ids, addresses or folders must be agreed on by all environments. Whoever changes one environment asks
an index for what the others have, and decodes only the records of those that it is about.

The records alone are the truth. An entry counts only while its record is the file that it was noted from: of the same
inode, size and times. Any other record is decoded, and noted by the next run that holds the lock. So an index that is
lost, damaged, of another version or of another time costs time, and never gives a wrong answer. It lies under ``/run``:
a reboot ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from netspace import files
from netspace.layout import Layout, below

# A file system counts time in steps: a record that is changed twice within one step may look the same. So a record is
# noted only once it is older than this (seconds), far more than any step.
_SETTLED = 1.0
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
        self._unwritten: _File[T] | None = None

    def read(self) -> dict[str, T]:
        """Return what is noted of every record, by its name in order; those that aren't noted are decoded.

        :raises StateError: one of those can't be understood.
        """
        noted = self._noted()
        found: dict[str, T] = {}
        kept: dict[str, _Entry[T]] = {}
        until = self._now() - int(_SETTLED * 1e9)
        for name, stamp in sorted(self._stamps().items()):
            entry = noted.get(name)
            if entry is None or entry.stamp != stamp:
                claims = self._claims(name)
                if claims is None:
                    continue
                entry = _Entry(stamp, claims)
            if max(stamp[2:]) < until:
                kept[name] = entry
            found[name] = entry.claims
        self._unwritten = None if kept == noted else _File(self._version, kept)
        return found

    def write(self) -> None:
        """Write what :meth:`read` found, if that was not noted yet. The caller holds the lock, since it read."""
        if self._unwritten is not None:
            content = msgspec.json.encode(self._unwritten)
            files.write(self._path, _digest(content) + content)
            self._unwritten = None

    def _stamps(self) -> dict[str, Stamp]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat(follow_symlinks=False)
                        stamp = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                        found[entry.name.removesuffix(".json")] = stamp
        return found

    def _noted(self) -> dict[str, _Entry[T]]:
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


def _digest(content: bytes) -> bytes:
    """Return the line that shows damage to the rest of the file."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n"
