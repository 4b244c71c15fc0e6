"""One nftables table as a value, and the text that changes one table into another. Pure.

A change touches only the differences: elements are added and removed in place, and a chain is refilled only if its
rules differ. So the kernel's counts of open connections in the rest of the table survive, and the cost depends on the
size of the change. The commands are ordered so that every object exists as long as a rule refers to it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from netspace.nftables import ruleset, words
from netspace.nftables.words import Verdict

Rule = str


class Base(msgspec.Struct, frozen=True):
    """The hook by which packets enter a chain.

    :param type: nft's type of the chain, such as ``filter``.
    :param hook: nft's name of the hook.
    :param priority: the lower, the earlier.
    :param policy: the verdict for packets that reach the chain's end.
    :param device: the link whose hook it is, in a table of family netdev.
    """

    type: str
    hook: str
    priority: int = 0
    policy: str = "accept"
    device: str = ""

    def __str__(self) -> str:
        device = f" device {words.link(self.device)}" if self.device else ""
        return f"type {self.type} hook {self.hook}{device} priority {self.priority}; policy {self.policy};"


class Chain(msgspec.Struct, frozen=True):
    """A chain of rules; packets enter it by ``base``, or by a jump from another chain."""

    rules: Sequence[Rule]
    base: Base | None = None


class Collection(msgspec.Struct, frozen=True):
    """A set, or with ``verdicts`` a map from keys to verdicts.

    :param types: nft's names of the types that make up a key.
    :param elements: the keys in the kernel's form, so that they can be compared with the kernel's.
    :param most: the greatest number of elements that packets or another process may add; 0: none may be added.
    :param expiring: whether elements may have a time after which the kernel removes them.
    :param counting: whether each element counts the packets with its key. Such an element is removed ``ruleset.KEPT``
        seconds after the first packet. See ``Ruleset.counted``.
    """

    types: tuple[str, ...]
    elements: Mapping[bytes, Verdict | None] = msgspec.field(default_factory=dict)
    verdicts: bool = False
    most: int = 0
    expiring: bool = False
    counting: Literal["", "packets", "times"] = ""

    def declared(self, name: str) -> list[str]:
        """Return the lines that declare the collection, with its elements."""
        lines = [f"type {' . '.join(self.types)}{' : verdict' if self.verdicts else ''}"]
        flags = "dynamic,timeout" if self.expiring or self.counting else "dynamic"
        lines += [f"size {self.most}", f"flags {flags}"] if self.most else []
        lines += [f"timeout {ruleset.KEPT}s"] if self.counting else []
        # The kernel would look for expired elements each second.
        lines += {"": [], "packets": ["gc-interval 1h", "counter"], "times": ["counter last"]}[self.counting]
        lines += [f"elements = {words.elements(self.types, self.elements)}"] if self.elements else []
        return _block(f"{'map' if self.verdicts else 'set'} {words.name(name)}", lines)


class Timeout(msgspec.Struct, frozen=True):
    """The seconds for which the kernel tracks connections of a protocol, by nft's names of the connections' states."""

    l3: str
    l4: str
    seconds: Mapping[str, int]

    def declared(self, name: str) -> list[str]:
        """Return the lines that declare the timeout."""
        policy = ", ".join(f"{state} : {seconds}" for state, seconds in self.seconds.items())
        lines = [f"protocol {self.l4}", f"l3proto {self.l3}", f"policy = {{ {policy} }}"]
        return _block(f"ct timeout {words.name(name)}", lines)


class Table(msgspec.Struct, frozen=True, dict=True):
    """A table. Objects with the same name in two tables may differ only in elements and rules."""

    chains: Mapping[str, Chain] = msgspec.field(default_factory=dict)
    sets: Mapping[str, Collection] = msgspec.field(default_factory=dict)
    timeouts: Mapping[str, Timeout] = msgspec.field(default_factory=dict)
    family: str = "inet"

    @functools.cached_property
    def elements(self) -> str:
        """A digest of all elements, equal to the one that ``Ruleset.listed`` returns."""
        sets = {name: one.elements for name, one in self.sets.items() if not one.most}
        return ruleset.elements_digest(self.family, sets)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the whole table. Tables with any difference have different digests."""
        found = hashlib.sha256(f"{self.family} {self.elements}\n".encode())
        for name, chain in sorted(self.chains.items()):
            found.update("\n".join([f"{name} {chain.base} {len(chain.rules)}", *chain.rules, ""]).encode())
        for name, one in sorted(self.sets.items()):
            found.update(f"{name} {one.types} {one.verdicts} {one.most}\n".encode())
            found.update(b"expiring\n" if one.expiring else b"")
            found.update(f"counting {one.counting}\n".encode() if one.counting else b"")
        for name, timeout in sorted(self.timeouts.items()):
            found.update(f"{name} {timeout}\n".encode())
        return found.hexdigest()

    def same_structure(self, other: Table) -> bool:
        """Return whether both tables are equal except for the elements of sets."""
        return self.chains == other.chains and self.timeouts == other.timeouts and self.sets.keys() == other.sets.keys()


def digest(tables: Iterable[Table]) -> str:
    """Return one digest of several tables."""
    return hashlib.sha256("".join(table.digest for table in tables).encode()).hexdigest()


def removal(family: str, name: str) -> str:
    """Return the text that removes a table. It first creates the table, so that a missing table is no error."""
    named = f"{family} {words.name(name)}"
    return f"add table {named}\ndelete table {named}\n"


def whole(name: str, table: Table) -> str:
    """Return the text that replaces the table *name* with *table*; a missing table is created."""
    return removal(table.family, name) + (creation(name, table) if table.chains else "")


def creation(name: str, table: Table) -> str:
    """Return the text that creates *table* under this name."""
    return difference(name, Table(family=table.family), table)


def difference(name: str, old: Table, new: Table) -> str:
    """Return the text that changes *old*, which the kernel holds, into *new*; empty if they are equal."""
    table = f"{new.family} {words.name(name)}"
    refilled = [chain for chain, one in new.chains.items() if chain in old.chains and old.chains[chain] != one]
    gone = [chain for chain in old.chains if chain not in new.chains]
    lines = [f"flush chain {table} {words.name(chain)}" for chain in (*refilled, *gone) if old.chains[chain].rules]
    added = []
    for set_, collection in new.sets.items():
        if set_ not in old.sets or old.sets[set_].elements == collection.elements:
            continue
        before, where = old.sets[set_].elements, f"element {table} {words.name(set_)}"
        over = {key: said for key, said in before.items() if collection.elements.get(key, ()) != said}
        more = {key: said for key, said in collection.elements.items() if before.get(key, ()) != said}
        if over:
            lines.append(f"delete {where} {words.elements(collection.types, over)}")
        if more:
            added.append(f"add {where} {words.elements(collection.types, more)}")
    if made := _made(old, new):
        lines += _block(f"table {table}", made)
    lines += added
    lines += [f"delete set {table} {words.name(set_)}" for set_ in old.sets if set_ not in new.sets]
    lines += [f"delete chain {table} {words.name(chain)}" for chain in gone]
    lines += [f"delete ct timeout {table} {words.name(one)}" for one in old.timeouts if one not in new.timeouts]
    return "".join(f"{line}\n" for line in lines)


def _made(old: Table, new: Table) -> list[str]:
    """Return the text lines that declare everything that *old* lacks, and the rules of chains that differ."""
    made: list[str] = []
    for which, timeout in new.timeouts.items():
        if which not in old.timeouts:
            made += timeout.declared(which)
    for which, one in new.sets.items():
        if which not in old.sets:
            made += one.declared(which)
    for which, chain in new.chains.items():
        if old.chains.get(which) != chain:
            base = [str(chain.base)] if chain.base is not None and which not in old.chains else []
            made += _block(f"chain {words.name(which)}", [*base, *chain.rules])
    return made


def _block(head: str, lines: Sequence[str]) -> list[str]:
    return [f"{head} {{", *(f"\t{line}" for line in lines), "}"]
