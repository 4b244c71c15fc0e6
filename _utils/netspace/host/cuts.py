"""Cuts of this host's links by its fleet's master, noted so that no other run makes these links again.

A run of Salt has the pillar of its beginning, and may reach its links long after the master ended one of them. So a cut
is noted for as long as such a run may last. Only a pillar that was requested after the cut ends it earlier. A run knows
when its pillar was requested if it requested the pillar itself (``netspace_trust.revise``, ``netspace_fleet.apply``).
The notes are in memory, because a reboot ends all runs.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.spec.types import Link

LASTS = 3600.0
"""Seconds for which a cut is noted. A run that takes longer may make the link again, until the next apply."""
WHY = (
    "its fleet's master ended it a short time ago, and this declaration may be older than that; see salt-run "
    "netspace_trust.status, and apply again by netspace_fleet.apply, or after an hour"
)


def clock() -> float:
    """Return the seconds since the boot. No change of the wall clock moves them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ended(
    known: Collection[Link], declared: Collection[Link], named: Collection[str], at_once: Collection[str]
) -> set[str]:
    """Return what the master ended: names of links, and ``@<host>`` for a host with which no link is left. Pure.

    :param known: the recorded links.
    :param declared: the links in the pillar now.
    :param named: names of the hosts whose trust changed; empty: all.
    :param at_once: names of the hosts whose links end at once.
    """
    left = {link.name for link in declared}
    gone = [link for link in known if _far(link) and link.name not in left and (not named or _far(link) in named)]
    staying = {_far(link) for link in declared}
    hosts = {_far(link) for link in gone} | set(at_once)
    return {link.name for link in gone} | {f"@{host}" for host in hosts - staying}


def note(layout: Layout, gone: Collection[str], declared: Collection[Link], asked: float) -> list[str]:
    """Note what the master ended, and what it permits. Of two notes, the one whose pillar was requested later counts.

    A failure must not hinder a cut, so it is returned: no text, or one.

    :param gone: the result of :func:`ended`.
    :param declared: the links in the pillar.
    :param asked: the time (:func:`clock`) before the pillar was requested.
    """
    said = dict.fromkeys(gone, True)
    said |= {name: False for link in declared if (host := _far(link)) for name in (link.name, f"@{host}")}
    try:
        layout.run.mkdir(mode=0o711, parents=True, exist_ok=True)
        with files.refusals_told(), files.locked(_path(layout).with_suffix(".lock")):
            try:
                known = _read(layout)
            except StateError:
                known = {}  # damaged: it is made again
            later = {name for name, (at, _) in known.items() if at > asked}
            found = {**known, **{name: (asked, one) for name, one in said.items() if name not in later}}
            files.write_json(_path(layout), {name: list(one) for name, one in found.items()})
    except (NetspaceError, OSError) as err:
        return [f"the cut isn't noted, so a run that began earlier may make the links again: {err}"]
    return []


def heard(layout: Layout, declared: Collection[Link], asked: float) -> None:
    """Note a pillar that was requested just now, if it declares links that a noted cut forbids: it ends the cut.

    :param asked: as for :func:`note`.
    """
    if refused(layout, declared):
        note(layout, (), declared, asked)


def refused(layout: Layout, links: Iterable[Link]) -> set[str]:
    """Return the names of those of *links* that the master ended, and that this host must not make again yet."""
    ways = {link.name: host for link in links if (host := _far(link))}
    known = _read(layout) if ways else {}
    return {name for name, host in ways.items() if any(known.get(one, (0, False))[1] for one in (name, f"@{host}"))}


def _far(link: Link) -> str:
    return link.to_host or link.from_host or ""


def _path(layout: Layout) -> Path:
    return layout.run / "cuts.json"


def _read(layout: Layout) -> dict[str, tuple[float, bool]]:
    """Return the notes that still count: by name, the time and whether the master ended it."""
    now, found = clock(), files.read_json(_path(layout)) or {}
    try:
        return {name: (at, gone) for name, (at, gone) in found.items() if 0 <= now - at < LASTS}
    except (TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err}; remove the file") from err
