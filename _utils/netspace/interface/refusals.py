"""Reader of an audited interface's refused packets, as the kernel has counted them. Changes nothing.

The sets of :mod:`netspace.interface.firewall.recording` in the kernel are the only record: there is no file and no
process. So the record ends when the host or the interface goes down, or when ``audit`` is switched off. It begins again
when the packet filter is loaded whole.
"""

from __future__ import annotations

import errno
import time
from typing import NamedTuple

from netspace.errors import NetspaceError
from netspace.interface import netns
from netspace.interface import record as records
from netspace.interface.firewall import netns_table, recording
from netspace.interface.firewall.recording import What, Why
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.nftables.ruleset import Ruleset
from netspace.spec.types import Direction, Filtered
from netspace.threads import in_thread


class Refusal(NamedTuple):
    """Packets of one kind that were refused.

    :param why: see ``recording.Place``.
    :param what: the packets.
    :param times: the number of these packets.
    :param first: the time of the first packet, in seconds since the epoch.
    :param last: the time of the last packet, in seconds since the epoch.
    :param neighbour: the environment of this host that has the peer's address; empty: none has.
    """

    why: Why
    direction: Direction
    what: What
    times: int
    first: float
    last: float
    neighbour: str = ""


class Refusals(NamedTuple):
    """The refused packets of one interface.

    :param found: the refusals, in the order of their first packets.
    :param unseen: why nothing is recorded; empty if refusals are recorded.
    :param record: the interface as it was applied; None: there is none.
    """

    found: list[Refusal]
    unseen: str
    record: Record | None


def refusals(layout: Layout, name: str) -> Refusals:
    """Return the refused packets of one environment.

    :raises NetspaceError: its packet filter can't be read.
    """
    record = records.read_one(layout, name)
    if record is None:
        return Refusals([], "it has no interface", None)
    if not isinstance(record.interface, Filtered):
        return Refusals([], "it has no network but loopback, where nothing is refused", record)
    if not record.interface.audit:
        return Refusals([], "audit isn't true", record)
    inside = netns_table.is_inside(record)

    def read() -> list[Refusal]:
        if inside:
            netns.enter(layout.netns(name))
        return _counted(layout.nft_table, "" if inside else name)

    try:
        found = in_thread(read)
    except OSError as err:
        if err.errno == errno.ENOENT:
            return Refusals([], "its network namespace is gone: apply again", record)
        raise NetspaceError(f"{name}: its packet filter can't be read: {err}") from err
    return Refusals(_named(layout, found), "", record)


def _counted(table: str, owner: str) -> list[Refusal]:
    """Return the refusals that the sets in the calling thread's namespace have counted."""
    found = []
    with Ruleset() as ruleset:
        for place in recording.places(owner):
            now = time.time()
            for one in ruleset.counted(table, "inet", place.name):
                what = recording.what(place, one.key)
                times = (now - one.first / 1000, now - one.last / 1000)
                found.append(Refusal(place.why, place.direction, what, one.packets, *times))
    return sorted(found, key=lambda one: (one.first, one.what))


def _named(layout: Layout, found: list[Refusal]) -> list[Refusal]:
    """Return the refusals in *found*, with ``neighbour`` set where the peer's address belongs to an environment."""
    from netspace.interface import claims

    if not any(one.what.peer for one in found):
        return found
    owners = {address: name for name, its in claims.index(layout).read().items() for address in its.addresses.values()}
    return [one._replace(neighbour=owners.get(one.what.peer, "")) for one in found]
