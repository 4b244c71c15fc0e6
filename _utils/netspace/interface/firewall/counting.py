"""Rules that count packets: those that each rule of ``allow`` accepts, and those that are dropped. Pure.

They accept and drop nothing. One set of each table holds all counts. Its size is bounded, and no packet's content is in
a key, so whoever sends packets can't fill it. If the set is full all the same, some packets aren't counted; what is
accepted and what is dropped stays the same, because a rule of its own decides that.

A packet of a connection is counted in the direction of its rule alone: answers aren't. A change of other rules keeps
the counts. They begin anew when the kernel's table is loaded whole, and for a rule that no packet met for
``ruleset.KEPT`` seconds.
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
    """Return a rule for one family (``Allow.each``) as a label shows it: ``tcp 198.51.100.0/24 443``."""
    words = [rule.protocol, rule.name, str(rule.cidr), None if rule.port is None else str(rule.port)]
    return " ".join(word for word in words if word is not None)


def published(one: Publication) -> str:
    """Return a publication as a label shows it: ``publish 443:8443``."""
    return f"publish {one}"


@functools.lru_cache(16384)
def key(direction: Direction, what: str) -> bytes:
    """Return the part of an element's key that stands for a rule or a reason, as the kernel holds it.

    nft writes this part as a MAC. Of nft's constants, only an IPv6 address is longer.
    """
    return hashlib.sha256(f"{direction} {what}".encode()).digest()[:6] + bytes(2)


def collection(types: tuple[str, ...]) -> Collection:
    """Return the set, without elements: packets add them.

    :param types: ``INTERFACE`` in a table for many interfaces, ``ALONE`` in a table that is one interface's own.
    """
    return Collection(types, most=MOST, counting="packets")


def count(direction: Direction, what: str, *, alone: bool = False) -> Rule:
    """Return the rule that counts a packet.

    :param what: a rule's text, or a reason.
    :param alone: the table is one interface's own.
    """
    end = "" if alone else _ENDS[direction]
    return f"update @{SET} {{ {end}{key(direction, what)[:6].hex(':')} }}"


def chain(direction: Direction, what: str) -> str:
    """Return the name of the chain that counts the packets which a rule accepts."""
    return f"rule.{direction}.{key(direction, what)[:6].hex()}"


def dropped(direction: Direction, *, alone: bool = False) -> Chain:
    """Return the chain that counts packets which no rule covers, and returns to the rule that drops them."""
    noise = [f"icmpv6 type {types} return" for types in _NEIGHBOURS]
    return Chain([*noise, count(direction, "none", alone=alone)])
