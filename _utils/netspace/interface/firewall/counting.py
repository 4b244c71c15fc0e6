"""Rules that only count packets: the packets that each rule of ``allow`` accepts, and the dropped packets. Pure.

One set in each table has all counts. The key of an element names the interface and the rule or reason, but nothing of a
packet. So no sender of packets can fill the set. If the set is full anyway, some packets aren't counted. This affects
no packet, because other rules accept and drop.

A packet of a connection is counted only in the direction of its rule, so answers aren't counted. The counts survive a
change of other rules. They begin anew when the whole table is loaded. The count of a rule also begins anew if no packet
met the rule for ``ruleset.KEPT`` seconds.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Literal

from netspace.nftables.table import Chain, Collection, Rule
from netspace.spec.publish import Publication
from netspace.spec.types import Allow, Direction

SET = "counted"
MOST = 65536
"""The most pairs of an interface and a rule that one table counts."""
Reason = Literal["none", "neighbour", "forged", "connections"]
"""
Why a packet is dropped. ``none``: no rule covers it. ``neighbour``: it is for another environment of this host.
``forged``: its source isn't the environment's. ``connections``: too many are open.
"""
REASONS: tuple[tuple[Direction, Reason], ...] = (
    ("out", "none"),
    ("out", "neighbour"),
    ("out", "forged"),
    ("out", "connections"),
    ("in", "none"),
    ("in", "connections"),
)
INTERFACE = ("ifname", "ether_addr")
ALONE = ("ether_addr",)
_NEIGHBOURS = ("130-137", "143")  # RFC 4861, 2710, 3810: both kernels send them, and no program
_ENDS = {"out": "iifname . ", "in": "oifname . "}


@functools.lru_cache(4096)
def text(rule: Allow) -> str:
    """Return the text of a rule for one family (``Allow.each``) in a metric's label: ``tcp 198.51.100.0/24 443``."""
    words = [rule.protocol, rule.name, str(rule.cidr), None if rule.port is None else str(rule.port)]
    return " ".join(word for word in words if word is not None)


def published(one: Publication) -> str:
    """Return the text of a published port in a metric's label: ``publish 443:8443``."""
    return f"publish {one}"


@functools.lru_cache(16384)
def key(direction: Direction, what: str) -> bytes:
    """Return the part of an element's key that stands for a rule or a reason, in the kernel's form.

    It is a hash, which nft writes as a MAC. Of nft's constants, only an IPv6 address is longer.
    """
    return hashlib.sha256(f"{direction} {what}".encode()).digest()[:6] + bytes(2)


def collection(types: tuple[str, ...]) -> Collection:
    """Return the set of the counts, without elements, since packets add the elements.

    :param types: ``INTERFACE`` in a table for many interfaces, ``ALONE`` in a table that belongs to one interface
        alone.
    """
    return Collection(types, most=MOST, counting="packets")


def count(direction: Direction, what: str, *, alone: bool = False) -> Rule:
    """Return the rule that counts a packet.

    :param what: a rule's text, or a reason.
    :param alone: whether the table belongs to one interface alone.
    """
    end = "" if alone else _ENDS[direction]
    return f"update @{SET} {{ {end}{key(direction, what)[:6].hex(':')} }}"


def chain(direction: Direction, what: str) -> str:
    """Return the name of the chain that counts the packets which a rule accepts."""
    return f"rule.{direction}.{key(direction, what)[:6].hex()}"


def dropped(direction: Direction, *, alone: bool = False) -> Chain:
    """Return the chain that counts packets which no rule covers. It doesn't drop: the calling chain does that next.

    Messages that kernels send by themselves to IPv6 neighbours aren't counted.

    :param alone: whether the table belongs to one interface alone.
    """
    noise = [f"icmpv6 type {types} return" for types in _NEIGHBOURS]
    return Chain([*noise, count(direction, "none", alone=alone)])
