"""Reader of the packet filters' counts: the packets that each rule of an interface accepted, and the dropped packets.

Changes nothing. One dump of the host's table has the counts of all interfaces that this table filters. For an interface
that is filtered in its own namespace, the table in that namespace is dumped.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from netspace.interface import kinds, netns
from netspace.interface.claims import Claims
from netspace.interface.firewall import counting
from netspace.layout import Layout
from netspace.nftables.ruleset import Ruleset
from netspace.spec.publish import Publication
from netspace.spec.types import Direction
from netspace.threads import in_thread

_END = 16  # bytes of an interface's name in a key
_NOTHING: Mapping[bytes, int] = {}


class Counted(NamedTuple):
    """A counted rule, or a reason why packets are dropped.

    :param direction: ``in`` or ``out``.
    :param what: the rule's text, or the reason (``counting.Reason``).
    :param key: the part of a set element's key that stands for the rule or reason (``counting.key``).
    """

    direction: Direction
    what: str
    key: bytes


class Interface(NamedTuple):
    """The counts of one interface.

    :param rules: its rules that accept packets.
    :param packets: the numbers of packets, by ``Counted.key``; a key is absent if no packet came.
    """

    rules: tuple[Counted, ...]
    packets: Mapping[bytes, int]


REASONS = tuple(Counted(direction, reason, counting.key(direction, reason)) for direction, reason in counting.REASONS)
"""The reasons why packets are dropped. Each can occur at each interface."""


def read(layout: Layout, interfaces: Mapping[str, Claims]) -> dict[str, Interface]:
    """Return the counts of all filtered interfaces, by environment.

    An interface is left out if its packet filter can't be read, or if an earlier version made the filter, without
    counts.
    """
    known = {name: its for name, its in interfaces.items() if its.connections}
    alone = [name for name, its in known.items() if kinds.filtered(its.kind, "inside")]
    found: dict[str, Interface] = {}
    if len(alone) < len(known) and (counts := _counts(layout)) is not None:
        by_end: dict[bytes, dict[bytes, int]] = defaultdict(dict)
        for key, packets in counts.items():
            by_end[key[:_END]][key[_END:]] = packets
        for name, its in known.items():
            if not kinds.filtered(its.kind, "inside"):
                ours = by_end.get(its.host_end.encode().ljust(_END, b"\0"), _NOTHING)
                found[name] = Interface(_rules(its.rules, its.ports if its.rare else ()), ours)
    if alone:
        read_there = in_thread(lambda: [_counts(layout, name) for name in alone])
        for name, inner in zip(alone, read_there, strict=True):
            if inner is not None:
                found[name] = Interface(_rules(known[name].rules, ()), inner)
    return found


def _counts(layout: Layout, inside: str = "") -> dict[bytes, int] | None:
    """Return the counts of the host's table, or of the table in an environment's namespace; None: unknown.

    :param inside: the environment's name; empty: the host's table. With a name, call this only in a thread that ends
        afterwards (``threads.in_thread``), because the thread enters the namespace.
    """
    try:
        if inside:
            netns.enter(layout.netns(inside))
        with Ruleset() as ruleset:
            return ruleset.counts(layout.nft_table, "inet", counting.SET)
    except OSError:
        return None


@functools.lru_cache(4096)
def _rules(rules: str, ports: tuple[str, ...]) -> tuple[Counted, ...]:
    """Return the counted rules of an interface, from its ``rules`` and ``ports`` (see ``Claims``)."""
    some = Claims("", "", rules=rules)
    what: list[tuple[Direction, str]] = [("in", counting.published(Publication(port))) for port in ports]
    what += [(rule.direction, counting.text(rule)) for rule in some.allow]
    return tuple(Counted(direction, text, counting.key(direction, text)) for direction, text in dict.fromkeys(what))
