"""Claims of one interface: the part of its record that other interfaces must respect, or that the packet filter needs.

A change of one interface needs only the claims of the others. The index (:mod:`netspace.index`) stores them, so a
record is decoded only if the index has no valid entry for it.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import operator
from collections.abc import Mapping, Sequence

import msgspec

import netspace
from netspace.index import Index
from netspace.interface import kinds
from netspace.interface import record as records
from netspace.interface.firewall import host_rules
from netspace.interface.record import Record
from netspace.known import examples
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.publish import Led, Publication, published
from netspace.spec.types import Allow, Filtered

_VERSION = "2"  # raise it whenever `of` finds something else in the same record
_MARK = "1"  # raise it whenever `weigh` finds something else: each host then loads its filter again


class Rare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The claims that few interfaces have.

    :param ports: the published ports of the host.
    :param alone: the things that only one interface of the host can have; see :meth:`Claims.claims`.
    :param agreed: the values about which interfaces must agree; see :meth:`Claims.shares`.
    :param tunnels: the UDP ports of the host that its tunnel uses; see :meth:`Claims.listens`.
    :param audit: whether its refused packets are recorded.
    """

    ports: tuple[str, ...] = ()
    alone: tuple[tuple[str, str], ...] = ()
    agreed: tuple[tuple[str, str, str], ...] = ()
    tunnels: tuple[tuple[str, int], ...] = ()
    audit: bool = False


_NOTHING = Rare()


class Claims(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names, addresses, ports and rules of one interface that concern the rest of the host.

    A change of one interface reads the claims of all, so their structure is flat. :func:`made` makes them.

    :param kind: the name of its kind.
    :param sort: a text that is equal for all interfaces that the packet filters treat alike: same kind, families,
        gateways, rules, bounds and forms of ports.
    :param ipv4: the environment's address; empty: it has none.
    :param gateway4: the host's address at the host's end; empty: it has none.
    :param host_end: the name of the host's end; empty for a kind without one.
    :param rules: the rules of ``allow``, as JSON; empty: there are none.
    :param connections: the most connections that may be open at once; 0: its kind isn't filtered.
    :param rare: the claims that few interfaces have; None: none of them.
    """

    kind: str
    sort: str
    ipv4: str = ""
    ipv6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    host_end: str = ""
    rules: str = ""
    connections: int = 0
    rare: Rare | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """The environment's addresses, by family."""
        if self.ipv4 and self.ipv6:
            return {"ipv4": self.ipv4, "ipv6": self.ipv6}
        return {"ipv4": self.ipv4} if self.ipv4 else {"ipv6": self.ipv6} if self.ipv6 else {}

    @property
    def gateways(self) -> dict[str, str]:
        """The host's addresses at the host's end, by family."""
        if self.gateway4 and self.gateway6:
            return {"ipv4": self.gateway4, "ipv6": self.gateway6}
        return {"ipv4": self.gateway4} if self.gateway4 else {"ipv6": self.gateway6} if self.gateway6 else {}

    @property
    def ports(self) -> tuple[str, ...]:
        """The ports of the host that are forwarded to the interface, as text (``publish``)."""
        return (self.rare or _NOTHING).ports

    @property
    def audit(self) -> bool:
        """Whether the interface's refused packets are recorded."""
        return (self.rare or _NOTHING).audit

    @property
    def allow(self) -> tuple[Allow, ...]:
        """The rules that the interface declares, each for one family (``Allow.each``)."""
        return _rules(self.rules) if self.rules else ()

    @property
    def publish(self) -> tuple[Publication, ...]:
        """The ports of the host that are forwarded to the interface, parsed."""
        return tuple(map(Publication, self.rare.ports)) if self.rare else ()

    @property
    def led(self) -> list[Led]:
        """The interface's published ports, each with the interface's addresses as the destination."""
        return [(one, self.addresses) for one in self.publish]

    @property
    def forwarded(self) -> frozenset[str]:
        """The families in which the host forwards packets for the interface."""
        return host_rules.forwarded(self.allow, self.gateways, self.publish)

    @property
    def exclusive(self) -> bool:
        """Whether other interfaces can conflict with this one about something other than addresses, such as ports."""
        rare = self.rare or _NOTHING
        return bool(rare.ports or rare.alone or rare.agreed or rare.tunnels)

    # The methods of a declared interface: see netspace.spec.publish.Claimant.
    def claims(self) -> tuple[tuple[str, str], ...]:
        """Return the things that only one interface of the host can have, as pairs: key, thing."""
        return (self.rare or _NOTHING).alone

    def shares(self) -> tuple[tuple[str, str, str], ...]:
        """Return the values that all interfaces with the same subject must agree about: (key, subject, value)."""
        return (self.rare or _NOTHING).agreed

    def listens(self) -> tuple[tuple[str, int], ...]:
        """Return the UDP ports of the host that the interface's tunnel uses, as pairs: key of the declaration, port."""
        return (self.rare or _NOTHING).tunnels


def made(
    kind: str,
    addresses: Mapping[str, str],
    gateways: Mapping[str, str],
    host_end: str = "",
    rules: str = "",
    connections: int = 0,
    rare: Rare = _NOTHING,
) -> Claims:
    """Return the claims of an interface. The parameters are those of :class:`Claims`.

    :param addresses: the environment's addresses, by family.
    :param gateways: the host's addresses at the host's end, by family.
    """
    forms = sorted(map(_form, rare.ports)) if rare.ports else []
    alike = kind, rules, connections, sorted(gateways.items()), sorted(addresses), rare.audit, forms
    return Claims(
        kind,
        hashlib.sha256(repr(alike).encode()).hexdigest()[:32],
        addresses.get("ipv4", ""),
        addresses.get("ipv6", ""),
        gateways.get("ipv4", ""),
        gateways.get("ipv6", ""),
        host_end,
        rules,
        connections,
        None if rare == _NOTHING else rare,
    )


def _form(port: str) -> tuple[str, int, bool]:
    """Return the properties of a published port on which its rules depend.

    They are the protocol, the number of colons (which shows whether an address is given), and whether the address is
    IPv6.
    """
    return port.partition("/")[2], port.count(":"), "[" in port


def of(record: Record) -> Claims:
    """Return the claims that follow from an interface's record."""
    spec = record.interface
    allow = spec.allow if isinstance(spec, Filtered) else ()
    return made(
        kinds.name(spec),
        record.addresses,
        record.gateways,
        record.host_end,
        msgspec.json.encode(parse.encode(allow)).decode() if allow else "",
        spec.connections if isinstance(spec, Filtered) else 0,
        Rare(
            tuple(map(str, published(spec))),
            tuple(spec.claims()),
            tuple(spec.shares()),
            tuple(spec.listens()),
            isinstance(spec, Filtered) and spec.audit,
        ),
    )


def weigh(name: str, its: Claims) -> int:
    """Return a hash, as a number, of one interface's part in the host's packet filter; 0 if it has none.

    Equal sums of these numbers mean equal filters (:func:`mark`).
    """
    if kinds.filtered(its.kind, "inside"):
        content: object = (*sorted(its.addresses.values()),)
    elif its.connections and kinds.filtered(its.kind, "host"):
        rare = its.rare or _NOTHING
        addresses, gateways = [("ipv4", its.ipv4)] if its.ipv4 else [], [("ipv4", its.gateway4)] if its.gateway4 else []
        if its.ipv6:
            addresses.append(("ipv6", its.ipv6))
        if its.gateway6:
            gateways.append(("ipv6", its.gateway6))
        content = its.host_end, addresses, gateways, its.rules, its.connections, rare.ports, rare.audit
    else:
        content = ()
    return int.from_bytes(hashlib.sha256(repr((name, content)).encode()).digest(), "big") if content else 0


def mark(weight: int) -> str:
    """Return a hash of the sum of :func:`weigh` over all interfaces; empty for 0.

    Equal marks mean equal packet filters of the host.
    """
    return hashlib.sha256(f"{_MARK} {weight:x}".encode()).hexdigest() if weight else ""


def index(layout: Layout) -> Index[Claims]:
    """Return the index of all interfaces' claims."""

    def claims(name: str) -> Claims | None:
        record = records.read_one(layout, name)
        return None if record is None else of(record)

    # A removed kind makes every entry void, so that its records are decoded again, and refused.
    version = " ".join([_VERSION, str(netspace.LOADED), *kinds.names()])
    return Index(layout, records.KIND, Claims, version, claims, weigh=weigh, sort=operator.attrgetter("sort"))


@functools.lru_cache(4096)
def _rules(text: str) -> tuple[Allow, ...]:
    allow: tuple[Allow, ...] = parse.convert(msgspec.json.decode(text), tuple[Allow, ...], "allow")
    return tuple(one for rule in allow for one in rule.each)


def numbers(known: Mapping[str, Claims]) -> Sequence[tuple[int, int]]:
    """Return the addresses of all interfaces that the host's table doesn't filter, sorted, as (version, number)."""
    return sorted((address.version, int(address)) for address in map(ipaddress.ip_address, elsewhere(known)))


def alike(known: Mapping[str, Claims]) -> dict[str, Claims]:
    """Return one interface of each ``sort``: the first by name.

    The packet filters treat all interfaces of a sort alike.
    """
    return examples(known, operator.attrgetter("sort"))


def elsewhere(known: Mapping[str, Claims]) -> list[str]:
    """Return the addresses of all interfaces that the host's table doesn't filter."""
    if not any(kinds.filtered(its.kind, "inside") for its in alike(known).values()):
        return []
    return [one for its in known.values() if kinds.filtered(its.kind, "inside") for one in its.addresses.values()]
