"""One nftables table as a value, and the messages that change one table into another. Pure.

A change touches only the differences: elements are added and removed in place, and a
chain is refilled only if its rules differ. So the kernel's counts of open connections in the rest
of the table survive, and the cost depends on the size of the change. The messages are ordered
so that no rule ever names an object that doesn't exist yet, or any more.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from netspace.interface import nftables as nf
from netspace.interface.netlink.connection import Message
from netspace.interface.nftables import Expression, Verdict

Rule = Sequence[Expression]


class Base(msgspec.Struct, frozen=True):
    """The hook by which packets enter a chain; the chain's policy is accept."""

    type: str
    hook: int
    priority: int = 0


class Chain(msgspec.Struct, frozen=True):
    rules: Sequence[Rule]
    base: Base | None = None


class Collection(msgspec.Struct, frozen=True):
    """A set, or with ``verdicts`` a map to verdicts. See ``nftables.declare_set`` for the fields."""

    type: int
    length: int
    about: bytes
    elements: Mapping[bytes, Verdict | None] = msgspec.field(default_factory=dict)
    verdicts: bool = False
    most: int = 0


class Timeout(msgspec.Struct, frozen=True):
    """The seconds for which the kernel tracks connections of a protocol, by their state."""

    l3: int
    l4: int
    seconds: Mapping[int, int]


class Table(msgspec.Struct, frozen=True, dict=True):
    """A table of family inet. Objects of the same name in two tables differ only in elements and rules."""

    chains: Mapping[str, Chain] = msgspec.field(default_factory=dict)
    sets: Mapping[str, Collection] = msgspec.field(default_factory=dict)
    timeouts: Mapping[str, Timeout] = msgspec.field(default_factory=dict)

    @functools.cached_property
    def elements(self) -> str:
        """Digest of all elements, equal to the one that ``nftables.Ruleset.listed`` returns."""
        return nf.elements_digest(nf.INET, {name: one.elements for name, one in self.sets.items() if not one.most})

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the whole table: tables that differ in anything have different digests."""
        found = hashlib.sha256(self.elements.encode())
        for message in _declared("", self):
            found.update(message.body)
        for name, chain in sorted(self.chains.items()):
            found.update(f"{name} {chain.base} {len(chain.rules)}\n".encode())
            for rule in chain.rules:
                found.update(b"%d" % len(rule) + b"".join(rule))
        return found.hexdigest()

    def same_structure(self, other: Table) -> bool:
        """Return whether both tables differ at most in elements."""
        return self.chains == other.chains and self.timeouts == other.timeouts and self.sets.keys() == other.sets.keys()


def whole(name: str, table: Table) -> list[Message]:
    """Return the messages that replace the table of this name, if there is one, with *table*."""
    made = nf.remove_table(nf.INET, name)
    return [*made, *nf.add_table(nf.INET, name), *difference(name, Table(), table)] if table.chains else made


def difference(name: str, old: Table, new: Table) -> list[Message]:
    """Return the messages that change *old*, which the kernel holds, into *new*."""
    refilled = [chain for chain, one in new.chains.items() if chain in old.chains and old.chains[chain] != one]
    gone = [chain for chain in old.chains if chain not in new.chains]
    made: list[Message] = []
    for chain, one in new.chains.items():
        if chain not in old.chains:
            made.append(_add_chain(name, chain, one))
    made += _declared(name, new, old)
    made += [nf.remove_rules(nf.INET, name, chain) for chain in (*refilled, *gone) if old.chains[chain].rules]
    added: list[Message] = []
    for set_, collection in new.sets.items():
        before = old.sets[set_].elements if set_ in old.sets else {}
        if before == collection.elements:
            continue
        over = {key: said for key, said in before.items() if collection.elements.get(key, ()) != said}
        more = {key: said for key, said in collection.elements.items() if before.get(key, ()) != said}
        made += nf.remove_elements(nf.INET, name, set_, over)
        added += nf.add_elements(nf.INET, name, set_, more)
    for chain, one in new.chains.items():
        if old.chains.get(chain) != one:
            made += [nf.add_rule(nf.INET, name, chain, rule) for rule in one.rules]
    made += added
    made += [nf.remove_set(nf.INET, name, set_) for set_ in old.sets if set_ not in new.sets]
    made += [nf.remove_chain(nf.INET, name, chain) for chain in gone]
    made += [nf.remove_timeout(nf.INET, name, one) for one in old.timeouts if one not in new.timeouts]
    return made


def _add_chain(name: str, chain: str, one: Chain) -> Message:
    if one.base is None:
        return nf.add_chain(nf.INET, name, chain)
    base = one.base
    return nf.add_base(nf.INET, name, chain, base.hook, policy=nf.ACCEPT, type_=base.type, priority=base.priority)


def _declared(name: str, new: Table, old: Table | None = None) -> list[Message]:
    """Return the messages that add the timeouts and (empty) sets that *old* lacks."""
    made = [
        nf.add_timeout(nf.INET, name, which, one.l3, one.l4, one.seconds)
        for which, one in new.timeouts.items()
        if old is None or which not in old.timeouts
    ]
    return made + [
        nf.declare_set(
            nf.INET, name, which, one.type, one.length, verdicts=one.verdicts, most=one.most, about=one.about
        )
        for which, one in new.sets.items()
        if old is None or which not in old.sets
    ]
