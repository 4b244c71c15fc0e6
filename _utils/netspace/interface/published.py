"""The part of the host's table that leads ports of the host to environments (``publish``). Pure.

1. What comes from an environment is never led on, whatever it is sent to: neither from one whose end is on the host,
   nor from one that is on somebody's network, by its address there. So no port leads from one environment to another.
2. Only what is sent to an address of the host's own is led on; what passes through the host is not.
3. The host's own programs are led on as well, but not from loopback: answers to such an address never leave
   an environment's namespace.
4. Connections that were led on, by the publication that says so, are let in, and nothing else by that: what is sent
   straight to the environment's address and port still needs a rule of ``allow``. That is judged for each packet.

A packet is looked up in maps by protocol and port, so that its cost doesn't grow with the number of publications; only
the first one of a connection is. Where nothing is published, there is none of this.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import struct
from collections.abc import Sequence

from netspace.interface import matching
from netspace.interface import nftables as nf
from netspace.interface.matching import FAMILIES, PROTOCOLS
from netspace.interface.nftables import Verdict
from netspace.interface.table import Base, Chain, Collection, Rule
from netspace.spec.publish import HostPort, Led, Publication

_DSTNAT = -100  # linux/netfilter_ipv4.h
# Of keys and elements, as nft counts its types: inet_proto, inet_service, ipv4_addr, ipv6_addr.
_PROTOCOL, _SERVICE, _ADDRESS = 12, 13, {"ipv4": 7, "ipv6": 8}
_TO_VERDICT = bytes.fromhex("000400000000010400000000")
_ACCEPT = nf.verdict(nf.ACCEPT)
_LOOPBACK = {"ipv4": bytes([127]), "ipv6": ipaddress.IPv6Address("::1").packed}
_IIF_NONE = struct.pack("=I", 0)


def chains(published: Sequence[Led], sent_by: Sequence[Rule]) -> tuple[dict[str, Chain], dict[str, Collection]]:
    """Return the chains and maps that lead connections on.

    :param sent_by: matches of packets that environments without an end on the host send.
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
        service = _PROTOCOL << 6 | _SERVICE
        sets[f"published_{fam}"] = Collection(service, 8, _TO_VERDICT, anywhere, verdicts=True)
        sets[f"published_at_{fam}"] = Collection(
            service << 6 | _ADDRESS[fam], 8 + of.length, _TO_VERDICT, at, verdicts=True
        )
    made["lead"] = Chain([rule for fam in FAMILIES for rule in _looked_up(fam)])
    into = [*nf.to_own_address(), nf.goto("lead")]
    others = [[*match, _ACCEPT] for match in ([nf.meta(nf.IIFNAME), nf.member("ends")], *sent_by)]
    made["published"] = Chain([*others, into], Base("nat", nf.PREROUTING, _DSTNAT))
    loopback = [[*matching.address(fam, "daddr", len(it)), nf.equal(it), _ACCEPT] for fam, it in _LOOPBACK.items()]
    made["published_here"] = Chain([*loopback, into], Base("nat", nf.OUTPUT, _DSTNAT))
    # What the host's own programs send leaves by lo, as far as the chain "output" can tell.
    own = [nf.meta(nf.OIFNAME), nf.member("ends"), *nf.translated(), *nf.is_(nf.IIF, _IIF_NONE), nf.goto("towards")]
    made["led"] = Chain([own], Base("filter", nf.POSTROUTING))
    return made, sets


def lead_name(one: Publication, address: str) -> str:
    """Return the name of the chain that leads to one port of one environment."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return f"lead.{one.host.protocol}.{one.inside}.{digest}"


def let_in(one: Publication, *, reply: bool) -> Rule:
    """Return the match of packets that belong to a connection which *one* led on: its answers, with *reply*."""
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
    of = FAMILIES[fam]
    key = [*nf.is_(nf.NFPROTO, of.proto), nf.meta(nf.L4PROTO), nf.payload(nf.TRANSPORT, 2, 2, nf.FIRST_SECOND)]
    address = nf.payload(nf.NETWORK, of.address["daddr"], of.length, nf.FIRST_THIRD)
    return [[*key, address, nf.by_map(f"published_at_{fam}")], [*key, nf.by_map(f"published_{fam}")]]


@functools.lru_cache(4096)
def _key(port: HostPort) -> bytes:
    address = ipaddress.ip_address(port.address).packed if port.address else b""
    return struct.pack(">B3xH2x", PROTOCOLS[port.protocol], port.port) + address
