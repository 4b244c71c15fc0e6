"""Index of the records of one kind: a cache of the values that must be unique or consistent across the host.

Such values are names, user ids, addresses and folders. To change one environment, netspace takes the values of all
others from the index, and decodes only the affected records.

The records are authoritative. There are two ways to check the index against them:

* *Thoroughly*: an entry is valid only while its record is the same file: same inode, size and times. A record without a
  valid entry is decoded, and the next run that changes something adds it to the index.
* *By the seal*: the run that writes the index sets the time of the records' folder, and stores this time in the index.
  Whoever creates, replaces or removes a record afterwards changes the folder's time. While the time is the stored one,
  all entries are valid. This check takes as long for ten thousand records as for one. It can't notice a program that
  overwrites a record in place, which netspace never does. Without a valid seal, the check is thorough.

So a lost, damaged or outdated index costs time, but never gives a wrong answer. Its first line is a digest that shows
damage. If the digest is right but a value isn't of its type, all records are decoded. The same holds for an index of
another version. The index lies under ``/run``, so a reboot removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar, cast

import msgspec

from netspace import files, folder_watch
from netspace.errors import StateError
from netspace.known import Groups, Known, Lines
from netspace.layout import Layout, below

# A file system counts time in steps of at most 10 ms: a record may look the same after a second change within a step.
# So the index takes a record only once it is older than this (seconds).
SETTLED = 0.05
_LARGEST = 64 * 1024 * 1024
_DIGEST = 65  # length of the file's first line in bytes

T = TypeVar("T")
Stamp = tuple[int, int, int, int]
_STAMP = cast("type[Stamp]", Stamp)


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first part of the index's file. The values and stamps follow in lines (:class:`known.Lines`).

    :param size: the number of bytes of the lines with the values; the lines after them have the stamps.
    :param seal: the stamp of the records' folder, if the values are those of all its records.
    :param young: names of records that changed so recently that their stamps prove nothing. Their values are valid only
        if the seal is.
    :param weight: the sum of all records' weights, hexadecimal.
    :param groups: for each sort of value, the number of its values and their first names; see :data:`known.Groups`.
    """

    version: str
    size: int = 1
    seal: Stamp | None = None
    young: list[str] = []
    weight: str = ""
    groups: Groups = {}


class _State(Generic[T]):
    """The values of all records, and the records' stamps.

    :param values: the value of each record.
    :param stamps: the stamp (inode, size, times) of each record.
    :param groups: for each sort of value, the number of its values and their first names; None: not computed yet.
    """

    def __init__(self, values: Lines[T], stamps: Lines[Stamp], groups: Groups | None = None) -> None:
        self.values = values
        self.stamps = stamps
        self.groups = groups

    def same(self, other: _State[T]) -> bool:
        return self.values.text == other.values.text and self.stamps.text == other.stamps.text


class Index(Generic[T]):
    """The index of one kind's records.

    :param kind: the kind of the records, as for :meth:`netspace.layout.Layout.records`.
    :param form: the type of an entry's value.
    :param version: the version of the entries; an index of another version is ignored.
    :param claims: decodes the record of a name, and returns the value for its entry; None if the record doesn't exist.
    :param now: returns the time in nanoseconds since the epoch; only tests set it.
    :param weigh: returns a number for a record's name and value; see :meth:`weight`.
    :param sort: returns the sort of a value; see :meth:`known.Known.examples`.
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
        sort: Callable[[T], str] = lambda value: "",
    ) -> None:
        self._folder = layout.records(kind)
        self._path = below(layout.run / "index", f"{kind}.json")
        self._form = form
        self._version = version
        self._claims = claims
        self._now = now
        self._weigh = weigh
        self._sort = sort
        self._weight: int | None = None
        self._head = _Head(version)
        self._noted: _State[T] = self._nothing()
        self._known: _State[T] | None = None  # the values that `read` returned; written if they can be sealed
        self._seen: Stamp | None = None  # the records' folder when `_known` was read; None: it changed meanwhile
        self._fresh: set[str] = set()  # records that may be too young to be noted
        self._watch: folder_watch.Watch | None = None

    def read(self, *, sealed: bool = False) -> Known[T]:
        """Return the value of every record, by the record's name. Records without a valid entry are decoded.

        :param sealed: whether a valid seal suffices; if not, each record's stamp is checked.
        :raises StateError: a record can't be decoded.
        """
        self._read()
        self._seen = _stamp_at(self._folder)  # after the seal, which no longer matches if the folder changes in between
        if sealed and self._seen is not None and self._seen == self._head.seal:
            self._known = self._noted
            self._fresh = set(self._head.young)
            self._weight = _weight(self._head)
        else:
            self._known = self._thorough()
            self._weight = None
            if _stamp_at(self._folder) != self._seen:
                self._seen = None
        return Known(self._known.values, self._sort, self._known.groups)

    def weight(self) -> int:
        """Return the sum of the weights of all records that :meth:`read` found."""
        if self._weight is None:
            known = {} if self._known is None else self._known.values.whole()
            self._weight = sum(self._weigh(name, claims) for name, claims in known.items())
        return self._weight

    def _nothing(self) -> _State[T]:
        return _State(Lines(b"\n", self._form, {}), Lines(b"\n", _STAMP, {}), {})

    def _thorough(self) -> _State[T]:
        noted, stamps = self._noted.values.whole(), self._noted.stamps.whole()
        young = set(self._head.young)
        known: dict[str, T] = {}
        valid: dict[str, Stamp] = {}
        self._fresh = set()
        for name, stamp in sorted(self._stamps().items()):
            claims = noted.get(name)
            if claims is None or stamps.get(name) != stamp or name in young:
                claims = self._claims(name)
                self._fresh.add(name)
            if claims is not None:
                known[name], valid[name] = claims, stamp
        if known == noted and valid == stamps:
            return self._noted
        return _State(Lines.of(known, self._form), Lines.of(valid, _STAMP))

    def begin(self) -> None:
        """Watch the records' folder until :meth:`note` or :meth:`end`, so that the index can be sealed.

        Call it after :meth:`read` and before the first change of a record, with the lock held. If another program
        changes something in between, the index isn't sealed.
        """
        self.end()
        seen = self._seen
        if seen is None or self._known is None or (watch := folder_watch.begin(self._folder)) is None:
            return
        self._watch = watch
        same = _stamp_at(self._folder) == seen
        if same and seen != self._head.seal:
            # A file system counts time in steps, so this folder may have changed within the step in which it was read.
            same = self._stamps() == self._known.stamps.whole()
        if not same:
            self.end()

    def end(self) -> None:
        """Stop watching the folder. Call it if the run that called :meth:`begin` ends without :meth:`note`."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def note(self, names: Iterable[str] = ()) -> None:
        """Write the index if it is out of date. The caller must have held the lock since :meth:`read`.

        Errors are ignored here. The next run decodes the records without an entry, and reports their errors.

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
        was = self._known
        assert was is not None
        new: dict[str, T | None] = dict.fromkeys(names)
        stamps: dict[str, Stamp | None] = {}
        moved = 0
        for name in sorted(names):
            stamp: Stamp | None = None
            with contextlib.suppress(FileNotFoundError):
                stamp = _stamp(os.stat(self._folder / f"{name}.json"))
                new[name] = self._claims(name)
            old, its = was.values.get(name), new[name]
            moved += (0 if its is None else self._weigh(name, its)) - (0 if old is None else self._weigh(name, old))
            stamps[name] = None if its is None else stamp
        now = _State(was.values.but(new), was.stamps.but(stamps))
        self._fresh |= names
        until = self._now() - int(SETTLED * 1e9)
        fresh = {name: stamp for name in sorted(self._fresh) if (stamp := now.stamps.get(name)) is not None}
        young = [name for name, stamp in fresh.items() if max(stamp[2:]) >= until]
        seal = self._sealed(fresh, names, now.same(self._noted))
        if seal is None:
            new |= dict.fromkeys(young)
            now = _State(now.values.but(dict.fromkeys(young)), now.stamps.but(dict.fromkeys(young)))
            young = []
        weight = self.weight() + moved if seal is not None else 0
        head = _Head(self._version, len(now.values.text), seal, young, f"{weight:x}" if weight else "")
        damaged = self._noted.values.mended or self._noted.stamps.mended
        if not damaged and now.same(self._noted) and head == msgspec.structs.replace(self._head, groups={}):
            return
        now.groups = Known(was.values, self._sort, was.groups, new).groups()
        head = msgspec.structs.replace(head, groups=now.groups)
        content = (msgspec.json.encode(head), now.values.text, now.stamps.text)
        files.write(self._path, b"".join((_digest(*content), *content)))
        self._head, self._noted = head, now

    def _sealed(self, stamps: Mapping[str, Stamp], names: set[str], same: bool) -> Stamp | None:
        """Seal the records' folder; return its stamp, or None if somebody else may have changed it.

        :param stamps: the expected stamps of the records in *names*.
        :param names: the records that the caller may have changed.
        :param same: whether the values equal those in the index's file.
        """
        seal = self._head.seal
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

    def _stamps(self) -> dict[str, Stamp]:
        """Return the stamps of all existing records, by name."""
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

    def _read(self) -> None:
        """Read the index's file. If it is damaged or of another version, begin with an empty index."""
        self._head, self._noted = _Head(self._version), self._nothing()
        try:
            whole = files.read(self._path, _LARGEST)
        except OSError:
            return
        if whole[:_DIGEST] != _digest(memoryview(whole)[_DIGEST:]):
            return
        begin = whole.find(b"\n", _DIGEST)
        try:
            head = msgspec.json.decode(whole[_DIGEST:begin] if begin > 0 else b"", type=_Head)
        except (msgspec.DecodeError, RecursionError):  # made by a version that noted it otherwise
            return
        if head.version == self._version:
            values, stamps = whole[begin : begin + head.size], whole[begin + head.size :]
            if not all(text[:1] == text[-1:] == b"\n" for text in (values, stamps)) or _weight(head) is None:
                return
            self._head = head
            self._noted = _State(
                Lines(values, self._form, again=self._from_records), Lines(stamps, _STAMP, again=dict), head.groups
            )

    def _from_records(self) -> dict[str, T]:
        """Return the values from the records themselves, because a value in the index is of a wrong type.

        :raises StateError: a record can't be decoded.
        """
        found = {name: self._claims(name) for name in sorted(self._stamps())}
        return {name: claims for name, claims in found.items() if claims is not None}


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _stamp_at(path: Path) -> Stamp | None:
    """Return the stamp of a record or of the records' folder; None if it doesn't exist."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _weight(head: _Head) -> int | None:
    """Return the sum of all records' weights; None if the file has no valid number."""
    try:
        return int(head.weight or "0", 16)
    except ValueError:
        return None


def _digest(*content: bytes | memoryview) -> bytes:
    """Return the file's first line: the digest of the rest, given in parts, which shows damage."""
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest().encode() + b"\n"
