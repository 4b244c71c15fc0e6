"""The part of the host's table that forwards published ports of the host to environments (``publish``). Pure.

1. Packets from an environment are never forwarded by a publication, whatever their destination. That holds for
   environments with an end on the host, and for those on an external network, by their address there. So a publication
   never leads from one environment to another.
2. Only packets to one of the host's own addresses are forwarded; packets that pass through the host are not.
3. Connections of the host's own programs are forwarded too, unless they go to a loopback address: their source is a
   loopback address as well, and answers to it would never leave the environment's namespace.
4. A publication lets in only the connections that it forwarded. A packet sent straight to the environment's address
   and port still needs a rule of ``allow``. Each packet is checked.
5. A published port is nobody's source port. Of two connections with the same ends the kernel tracks one: after a packet
   from a published port to a user, the user's packets to that port would be its answers, and not be forwarded. So
   packets that would begin such a connection from one of the host's addresses are dropped, whoever sent them, after
   all translation of addresses.

Maps by protocol and port find the publication, so the cost of a packet doesn't grow with the number of publications.
Only the first packet of a connection is looked up there. Without publications, the table has none of these chains.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import struct
from collections.abc import Sequence

from netspace.interface import match as matching
from netspace.interface import nftables as nf
from netspace.interface.firewall.table import Base, Chain, Collection, Rule
from netspace.interface.match import FAMILIES, PROTOCOLS
from netspace.interface.nftables import Expression, Verdict
from netspace.spec.publish import HostPort, Led, Publication

_DSTNAT, _AFTER_SRCNAT = -100, 300  # linux/netfilter_ipv4.h
# nft's numbers of the types of keys and elements: inet_proto, inet_service, ipv4_addr, ipv6_addr.
_PROTOCOL, _SERVICE, _ADDRESS = 12, 13, {"ipv4": 7, "ipv6": 8}
_KEYS = bytes.fromhex("000400000000")
_TO_VERDICT = bytes.fromhex("000400000000010400000000")
_ACCEPT, _DROP = nf.verdict(nf.ACCEPT), nf.verdict(nf.DROP)
_LOOPBACK = {"ipv4": bytes([127]), "ipv6": ipaddress.IPv6Address("::1").packed}
_IIF_NONE = struct.pack("=I", 0)


def chains(published: Sequence[Led], sent_by: Sequence[Rule]) -> tuple[dict[str, Chain], dict[str, Collection]]:
    """Return the chains and maps that forward connections to published ports.

    :param sent_by: matches for packets from environments without an end on the host.
    """
    made: dict[str, Chain] = {}
    sets: dict[str, Collection] = {}
    for fam, of in FAMILIES.items():
        anywhere: dict[bytes, Verdict | None] = {}
        at: dict[bytes, Verdict | None] = {}
        for one, addresses in published:
            if fam not in one.families or fam not in addresses:
                continue
            name = lead_name(one, addresses[fam])
            made[name] = Chain([_lead(fam, addresses[fam], one)])
            (at if one.host.address else anywhere)[_key(one.host)] = nf.to_goto(name)
        service = (_PROTOCOL << 6 | _SERVICE, 8)
        service_at = (service[0] << 6 | _ADDRESS[fam], 8 + of.length)
        for which, type_, found in (("", service, anywhere), ("at_", service_at, at)):
            sets[f"published_{which}{fam}"] = Collection(*type_, _TO_VERDICT, found, verdicts=True)
            sets[f"reserved_{which}{fam}"] = Collection(*type_, _KEYS, dict.fromkeys(found))
    made["lead"] = Chain([rule for fam in FAMILIES for rule in _looked_up(fam)])
    into = [*nf.to_own_address(), nf.goto("lead")]
    others = [[*match, _ACCEPT] for match in ([nf.meta(nf.IIFNAME), nf.member("ends")], *sent_by)]
    made["published"] = Chain([*others, into], Base("nat", nf.PREROUTING, _DSTNAT))
    made["published_here"] = Chain([*_loopback("daddr"), into], Base("nat", nf.OUTPUT, _DSTNAT))
    reserved = [rule for fam in FAMILIES for rule in _reserved(fam)]
    made["reserved"] = Chain([*_loopback("saddr"), *reserved], Base("filter", nf.POSTROUTING, _AFTER_SRCNAT))
    # Packets of the host's own programs, which the chain "output" has seen with lo as their output interface.
    own = [nf.meta(nf.OIFNAME), nf.member("ends"), *nf.translated(), *nf.is_(nf.IIF, _IIF_NONE), nf.goto("towards")]
    made["led"] = Chain([own], Base("filter", nf.POSTROUTING))
    return made, sets


def lead_name(one: Publication, address: str) -> str:
    """Return the name of the chain that forwards to one port of one environment."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return f"lead.{one.host.protocol}.{one.inside}.{digest}"


def let_in(one: Publication, *, reply: bool) -> Rule:
    """Return the match for packets of connections that *one* forwarded.

    :param reply: match the packets of the reply direction.
    """
    port = one.host
    address: list[bytes] = []
    if port.address:
        fam = one.families[0]
        key = {"ipv4": nf.TO_IPV4, "ipv6": nf.TO_IPV6}[fam]
        packed = ipaddress.ip_address(port.address).packed
        address = [*nf.is_(nf.NFPROTO, FAMILIES[fam].proto), nf.connection(key, original=True), nf.equal(packed)]
    return [
        *nf.translated(),
        *nf.is_(nf.L4PROTO, bytes([PROTOCOLS[port.protocol]])),
        nf.payload(nf.TRANSPORT, 0 if reply else 2, 2),
        nf.equal(struct.pack(">H", one.inside)),
        nf.connection(nf.TO_PORT, original=True),
        nf.equal(struct.pack(">H", port.port)),
        *address,
    ]


def _lead(fam: str, address: str, one: Publication) -> Rule:
    of = FAMILIES[fam]
    return [
        *nf.is_(nf.NFPROTO, of.proto),
        *nf.is_(nf.L4PROTO, bytes([PROTOCOLS[one.host.protocol]])),
        *nf.lead_to(of.proto[0], ipaddress.ip_address(address).packed, one.inside),
    ]


def _looked_up(fam: str) -> list[Rule]:
    key, address = _loaded(fam, "daddr", 2)
    return [[*key, address, nf.by_map(f"published_at_{fam}")], [*key, nf.by_map(f"published_{fam}")]]


def _reserved(fam: str) -> list[Rule]:
    key, address = _loaded(fam, "saddr", 0)
    begun = [nf.connection(nf.DIRECTION), nf.equal(nf.ORIGINAL), *key]
    dropped = [*nf.from_own_address(), _DROP]
    return [
        [*begun, address, nf.member(f"reserved_at_{fam}"), *dropped],
        [*begun, nf.member(f"reserved_{fam}"), *dropped],
    ]


def _loaded(fam: str, which: str, port: int) -> tuple[Rule, Expression]:
    """Return the expressions that load protocol and port, and the one that loads the address behind them."""
    of = FAMILIES[fam]
    key = [*nf.is_(nf.NFPROTO, of.proto), nf.meta(nf.L4PROTO), nf.payload(nf.TRANSPORT, port, 2, nf.FIRST_SECOND)]
    return key, nf.payload(nf.NETWORK, of.address[which], of.length, nf.FIRST_THIRD)


def _loopback(which: str) -> list[Rule]:
    return [[*matching.address(fam, which, len(it)), nf.equal(it), _ACCEPT] for fam, it in _LOOPBACK.items()]


@functools.lru_cache(4096)
def _key(port: HostPort) -> bytes:
    address = ipaddress.ip_address(port.address).packed if port.address else b""
    return struct.pack(">B3xH2x", PROTOCOLS[port.protocol], port.port) + address
