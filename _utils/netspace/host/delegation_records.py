"""Records of delegations: one file for each link that the host made at a program's request (``delegate``).

The file is written before the link is made, and removed after the link is gone. If a record lacks ``made``, netspace
was killed while it made the link. Such a delegation is ended, because no answer has told the program of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.host import child_records
from netspace.host.child_records import Run
from netspace.layout import Layout, below
from netspace.spec.delegations import Granted, Possible

KIND = "delegations"
_DEEPEST = 64
"""The most delegations in a chain in which each one derives from the previous one."""


class Delegation(msgspec.Struct, frozen=True):
    """A delegated right: one environment may send to a second, because a third one, the holder, asked the host for it.

    :param id: a random text, different for each delegation.
    :param holder: the environment whose program delegated the right.
    :param to: the environment that got the right.
    :param target: the receiver of its messages.
    :param rate: the most messages per second; None: no limit.
    :param size: the most bytes of a message's body; None: no limit.
    :param length: the most messages that wait; None: no limit of its own.
    :param until: its end in seconds since 1970, as in the answer to the holder.
    :param ends: the same in seconds since the boot. Only this value is enforced, because somebody may set the wall
        clock.
    :param within: the run of the holder's program that requested it.
    :param child: the run of the child in *to*; None: *to* is not a place for children.
    :param under: the id of the delegation from which the holder has its own right; empty: the holder's link is
        declared.
    :param made: whether the link was made.
    :param revoked: whether the holder has revoked it.
    """

    id: str
    holder: str
    to: str
    target: str
    rate: float | None
    size: int | None
    length: int | None
    until: float
    ends: float
    within: Run
    child: Run | None = None
    under: str = ""
    made: bool = False
    revoked: bool = False

    @property
    def possible(self) -> Possible:
        """The declared possible link that this delegation uses."""
        return Possible(self.holder, self.to, self.target)

    @property
    def name(self) -> str:
        """The name of the delegated link."""
        return self.possible.name

    @property
    def of(self) -> str:
        """The name of the holder's link, from which this right derives."""
        return self.possible.of

    @property
    def granted(self) -> Granted:
        """The limits of the delegated right."""
        return Granted(self.holder, self.rate, self.size, self.length)

    @property
    def runs(self) -> set[Run]:
        """The runs of programs with which the delegation ends."""
        return {self.within} | ({self.child} if self.child is not None else set())


def _path(layout: Layout, name: str) -> Path:
    return below(layout.records(KIND), f"{name}.json")


def names(layout: Layout, among: Iterable[str] | None = None) -> set[str]:
    """Return the names of the delegated links.

    :param among: names that are looked up; None: all.
    """
    return files.record_names(layout.records(KIND), among)


def read(layout: Layout, name: str) -> Delegation | None:
    """Return a delegation by the name of its link; None if there is none, or its record is damaged."""
    try:
        found = msgspec.json.decode(files.read(_path(layout, name)), type=Delegation)
    except (OSError, ValueError):
        return None
    return found if found.name == name else None


def write(layout: Layout, one: Delegation) -> None:
    """Write the record of a delegation."""
    files.write(_path(layout, one.name), msgspec.json.encode(one))


def remove(layout: Layout, gone: Iterable[str]) -> None:
    """Remove the records of delegations whose links are gone, and the folder if none is left."""
    for name in gone:
        files.remove(_path(layout, name))
    folder = layout.records(KIND)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def due(layout: Layout) -> dict[str, str]:
    """Return the delegations that must end now: by the name of each one's link, the reason. Changes nothing."""
    known = {name: read(layout, name) for name in names(layout)}
    found = {name: why for name, one in known.items() if (why := _why(layout, one))}
    alive = {one.id: one for name, one in known.items() if one is not None and name not in found}
    for _ in range(_DEEPEST):
        lost = [one for one in alive.values() if one.under and not _stands_on(one, alive)]
        if not lost:
            break
        for one in lost:
            found[one.name] = "the right from which it derives has ended"
            del alive[one.id]
    else:
        found |= {one.name: "its chain of delegations is too long" for one in alive.values() if one.under}
    return found


def _stands_on(one: Delegation, alive: Mapping[str, Delegation]) -> bool:
    above = alive.get(one.under)
    return above is not None and (above.to, above.target) == (one.holder, one.target)


def _why(layout: Layout, one: Delegation | None) -> str:
    """Return why a delegation must end by itself; the delegations from which it derives don't count here.

    An empty text means that it may go on.
    """
    if one is None:
        return "its record is damaged"
    if one.revoked:
        return "it was revoked"
    if not one.made:
        return "its making was interrupted"
    if not one.within.lasts():
        return "the program that delegated it has ended"
    if one.child is not None and not one.child.lasts():
        return "the child that had it has ended"
    if child_records.now() >= one.ends:
        return "its time is over"
    from netspace.environment import record as records

    path = records.path(layout, one.holder)
    known = _receivers(layout, one.holder, files.stamp(path)) if path.exists() else frozenset()
    if known is not None and (one.target, one.to) not in known:
        return "its holder may not delegate it any more"
    return ""


@functools.lru_cache(maxsize=64)
def _receivers(layout: Layout, holder: str, stamp: tuple[int, int, int]) -> frozenset[tuple[str, str]] | None:
    """Return the links that an environment may delegate, as pairs of receiver and peer; None if its record is damaged.

    :param stamp: the stamp of the record's file. The record is read again only when the stamp has changed.
    """
    from netspace.environment import record as records

    found, damaged = records.read_each(layout, [holder])
    if damaged:
        return None
    if holder not in found:
        return frozenset()
    spec = found[holder].spec
    return frozenset((target, to) for target, bound in spec.delegates.items() for to in bound.to)


def mark(layout: Layout, links: Mapping[str, dict[str, Any]]) -> None:
    """Add ``delegated_by`` and ``until`` to the rows of delegated links.

    :param links: rows of links, by name. Other rows stay as they are.
    """
    for name in names(layout, links):
        if (one := read(layout, name)) is not None:
            links[name] |= {"delegated_by": one.holder, "until": one.until}
