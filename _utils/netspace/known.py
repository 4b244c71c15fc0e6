"""Values by name, for readers that need only a few of them. A value is decoded when a reader looks it up. Pure.

A host may have thousands of records. To change one environment, netspace needs to know only which sorts of values all
other environments have. So :class:`Known` also returns one example of each *sort* without decoding all values.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
Groups = dict[str, tuple[int, list[str]]]
"""For each sort: the number of its values, and their first names in alphabetical order."""
_FEW = 32  # names that are looked for one by one; where more are asked for, all values are decoded
_FIRST = 8  # names that are kept of each sort: once so many are removed, all values must be looked at again


class Lines(Generic[T]):
    """Values by name as JSON, one line each: ``"name":value``. A line is decoded when its name is looked up.

    :param text: the lines, with a line feed before the first line and after each line. A value contains no line feed,
        since it is JSON.
    :param form: the type of the values.
    :param whole: all values, if they are decoded already.
    :param again: reads all values from their source, for the case that the lines are damaged.
    """

    def __init__(
        self,
        text: bytes,
        form: type[T],
        whole: Mapping[str, T] | None = None,
        again: Callable[[], Mapping[str, T]] | None = None,
    ) -> None:
        self.text = text
        self.mended = False
        self._form = form
        self._whole = None if whole is None else dict(whole)
        self._again = again
        self._asked = 0
        self._places: dict[str, tuple[int, int]] = {}  # where the lines of names are that were looked up

    @classmethod
    def of(cls, values: Mapping[str, T], form: type[T]) -> Lines[T]:
        """Return *values* as lines."""
        lines = [_key(name)[1:] + msgspec.json.encode(value) + b"\n" for name, value in values.items()]
        return cls(b"\n" + b"".join(lines), form, values)

    def __len__(self) -> int:
        return self.text.count(b"\n") - 1

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.whole() if self._many() else self.place(name)[1] > 0)

    def _many(self) -> bool:
        """Count one look-up; return whether there were so many that all values are better decoded at once."""
        self._asked += 1
        return self._whole is not None or self._asked > _FEW

    def get(self, name: str) -> T | None:
        """Return the value of *name*; None if there is none.

        :raises msgspec.DecodeError: the value isn't of its type, and can't be read from its source.
        """
        if self._many():
            return self.whole().get(name)
        at, end = self.place(name)
        if not end:
            return None
        try:
            value: T = _decoder(self._form)(self.text[at + len(_key(name)) : end])
        except (msgspec.DecodeError, RecursionError):
            return self.mend().get(name)
        return value

    def place(self, name: str) -> tuple[int, int]:
        """Return the positions of the line feeds before and after the line of *name*; (0, 0): there is no such line.

        A host may have thousands of lines, so a place that was found is remembered.
        """
        found = self._places.get(name)
        if found is None:
            at = self.text.rfind(_key(name))  # four times as fast as find
            found = self._places[name] = (0, 0) if at < 0 else (at, self.text.index(b"\n", at + 1))
        return found

    def whole(self) -> Mapping[str, T]:
        """Return all values, ordered by name.

        :raises msgspec.DecodeError: a value isn't of its type, and can't be read from its source.
        """
        if self._whole is None:
            try:
                values: dict[str, T] = _decoder(dict[str, self._form])(  # type: ignore[name-defined]
                    b"{" + self.text[1:-1].replace(b"\n", b",") + b"}"
                )
            except (msgspec.DecodeError, RecursionError):
                return self.mend()
            self._whole = {name: values[name] for name in sorted(values)}
        return self._whole

    def mend(self) -> Mapping[str, T]:
        """Replace damaged lines: read all values from their source, and return them.

        :raises msgspec.DecodeError: there is no source.
        """
        if self._again is None:
            raise msgspec.DecodeError("the values are damaged")
        values = self._again()
        self._whole = {name: values[name] for name in sorted(values)}
        self.text = Lines.of(self._whole, self._form).text
        self._places = {}
        self.mended = True
        return self._whole

    def but(self, new: Mapping[str, T | None]) -> Lines[T]:
        """Return these lines with new values for some names; a name with the value None is removed."""
        new = {name: value for name, value in new.items() if self.get(name) != value}
        if not new:
            return self
        if len(new) > _FEW:
            merged = {name: value for name, value in {**self.whole(), **new}.items() if value is not None}
            return Lines.of(merged, self._form)
        parts, begin = [], 0
        for at, end in sorted(self.place(name) for name in new):
            parts.append(self.text[begin:at])
            begin = end
        parts.append(self.text[begin:])
        for name, value in new.items():
            if value is not None:
                parts += [_key(name)[1:], msgspec.json.encode(value), b"\n"]
        return Lines(b"".join(parts), self._form, again=self._again)


_DECODERS: dict[Any, Callable[[bytes], Any]] = {}


def _decoder(form: Any) -> Callable[[bytes], Any]:
    found = _DECODERS.get(form)
    if found is None:
        found = _DECODERS[form] = msgspec.json.Decoder(form).decode
    return found


def _key(name: str) -> bytes:
    return b"\n" + msgspec.json.encode(name) + b":"


class Known(Mapping[str, T]):
    """Values by name. A value's *sort* is a text that is equal for all values that the caller treats alike.

    The sorts, and whether a text occurs in a value, can be looked up without decoding all values.

    :param noted: the stored values.
    :param sort: returns the sort of a value.
    :param groups: for each sort of the values in *noted*, their number and first names; None: not computed yet.
    :param new: the values that differ from *noted*, by name; the value None removes the name.
    """

    def __init__(
        self,
        noted: Lines[T],
        sort: Callable[[T], str],
        groups: Groups | None = None,
        new: Mapping[str, T | None] | None = None,
    ) -> None:
        self._noted = noted
        self._sort = sort
        self._groups = groups
        self._new = new or {}
        self._merged: Mapping[str, T] | None = None
        self._sorts: Groups | None = None

    def __getitem__(self, name: str) -> T:
        value = self._new[name] if name in self._new else self._noted.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        if name in self._new:
            return self._new[name] is not None  # type: ignore[index]
        return name in self._noted

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        changed = sum((value is not None) - (name in self._noted) for name, value in self._new.items())
        return len(self._noted) + changed

    def keys(self) -> KeysView[str]:
        return self._all().keys()

    def values(self) -> ValuesView[T]:
        return self._all().values()

    def items(self) -> ItemsView[str, T]:
        return self._all().items()

    def _all(self) -> Mapping[str, T]:
        if self._merged is None:
            if not self._new:
                self._merged = self._noted.whole()
            else:
                merged = dict(self._noted.whole())
                for name, value in self._new.items():
                    if value is None:
                        merged.pop(name, None)
                    else:
                        merged[name] = value
                self._merged = merged
        return self._merged

    def but(self, new: Mapping[str, T | None]) -> Known[T]:
        """Return these values with new values for some names; a name with the value None is removed."""
        return Known(self._noted, self._sort, self._groups, {**self._new, **new}) if new else self

    def alone(self, name: str, text: str) -> bool:
        """Return whether *name* is certainly the only name whose value contains *text*."""
        part = msgspec.json.encode(text)
        at, end = self._noted.place(name)
        last = self._noted.text.rfind(part)
        if not end or last < 0 or self._noted.text.rfind(part, 0, last) >= 0:
            return False
        others = (value for other, value in self._new.items() if value is not None and other != name)
        own = self._noted.text[at + len(_key(name)) : end]  # without the name
        return part in own and not any(part in msgspec.json.encode(value) for value in others)

    def lack(self, part: bytes) -> bool:
        """Return whether certainly no value's JSON contains *part*. Decodes no value."""
        if self._noted.text.rfind(part) >= 0:  # four times as fast as `in`
            return False
        return not any(part in msgspec.json.encode(value) for value in self._new.values() if value is not None)

    def groups(self) -> Groups:
        """Return, for each sort, the number of the values that have it, and their first names."""
        if self._sorts is None:
            groups = None if self._noted.mended else self._groups
            found = None if groups is None else _moved(groups, self._noted, self._new, self._sort)
            if found is None or self._noted.mended:
                found = grouped(self._all(), self._sort)
            self._sorts = found
        return self._sorts

    def examples(self) -> dict[str, T]:
        """Return, by name, one value of each sort: the one whose name is the first in alphabetical order."""
        mended = self._noted.mended
        names = [first[0] for _, first in self.groups().values()]
        if not all(name in self for name in names):  # the sorts were noted with values that are damaged
            self._noted.mend()
        found = {name: self[name] for name in names if name in self}
        if self._noted.mended == mended:
            return found
        self._sorts = self._merged = None
        return {first[0]: self[first[0]] for _, first in self.groups().values()}


def grouped(values: Mapping[str, T], sort: Callable[[T], str]) -> Groups:
    """Return, for each sort, the number of the values that have it, and their first names."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(sort(value), []).append(name)
    return {key: (len(names), sorted(names)[:_FIRST]) for key, names in found.items()}


def _moved(groups: Groups, noted: Lines[T], new: Mapping[str, T | None], sort: Callable[[T], str]) -> Groups | None:
    """Return *groups*, updated for the values in *new*; None if the update would need all values."""
    found = dict(groups)
    for name, value in new.items():
        old = noted.get(name)
        was, now = (None if one is None else sort(one) for one in (old, value))
        if was == now:
            continue
        if was is not None:
            count, first = found.pop(was)
            first = [one for one in first if one != name]
            if count > 1 and not first:
                return None
            if count > 1:
                found[was] = count - 1, first
        if now is not None:
            count, first = found.get(now, (0, []))
            if len(first) == count or name < first[-1]:
                first = sorted([*first, name])[:_FIRST]
            found[now] = count + 1, first
    return found


def without(known: Mapping[str, T], names: Iterable[str]) -> Mapping[str, T]:
    """Return *known* without these names."""
    if isinstance(known, Known):
        return known.but(dict.fromkeys(names))
    left = dict(known)
    for name in names:
        left.pop(name, None)
    return left


def also(known: Mapping[str, T], new: Mapping[str, T]) -> Mapping[str, T]:
    """Return *known* with the values of *new* added; they replace values of the same names."""
    return known.but(new) if isinstance(known, Known) else {**known, **new}


def examples(known: Mapping[str, T], sort: Callable[[T], str]) -> dict[str, T]:
    """Return one value of each sort, by its name: the first in alphabetical order."""
    if isinstance(known, Known):
        return known.examples()
    return {first[0]: known[first[0]] for _, first in grouped(known, sort).values()}
