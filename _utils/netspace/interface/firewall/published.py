"""The part of the host's table that forwards published ports of the host to environments (``publish``). Pure.

1. Packets from an environment are never forwarded by a published port, whatever their destination. That holds for
  environments with an end on the host, and for those on an external network, by their address there. So a published
  port never leads from one environment to another.
2. Only packets to one of the host's own addresses are forwarded; packets that pass through the host are not.
3. Connections of the host's own programs are forwarded, too, unless they go to a loopback address. In that case their
  source would be a loopback address as well, and answers to it would never leave the environment's namespace.
4. A published port lets in only the connections that it forwarded. A packet sent straight to the environment's address
  and port still needs a rule of ``allow``. Each packet is checked.
5. No connection from one of the host's addresses begins at a published port. Otherwise, after a packet from the
  published port to a user, the kernel would take the user's packets to that port for answers, and would not forward
  them. (The kernel tracks all packets between two ends as one connection.) So packets that would begin such a
  connection are dropped, no matter who sent them. This is done after all translation of addresses.

Maps with protocol and port as key find the published port, so the cost of a packet doesn't grow with the number of
published ports. Only the first packet of a connection is looked up in them. Without published ports, the table has none
of these chains.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import struct
from collections.abc import Sequence

from netspace.interface.match import FAMILIES, PROTOCOLS
from netspace.nftables.table import Base, Chain, Collection, Rule
from netspace.nftables.words import Verdict, to_goto
from netspace.spec.publish import HostPort, Led, Publication

_DSTNAT, _AFTER_SRCNAT = -100, 300  # linux/netfilter_ipv4.h
_PORT = ("inet_proto", "inet_service")
_LOOPBACK = {"ipv4": "127.0.0.0/8", "ipv6": "::1"}


def chains(published: Sequence[Led], sent_by: Sequence[Rule]) -> tuple[dict[str, Chain], dict[str, Collection]]:
    """Return the chains and maps that forward connections to published ports.

    :param published: the published ports, each with the addresses to which it leads.
    :param sent_by: matches for packets from environments whose interfaces have no end on the host; they are not
        forwarded.
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
            (at if one.host.address else anywhere)[_key(one.host)] = to_goto(name)
        for which, types, found in (("", _PORT, anywhere), ("at_", (*_PORT, of.type), at)):
            sets[f"published_{which}{fam}"] = Collection(types, found, verdicts=True)
            sets[f"reserved_{which}{fam}"] = Collection(types, dict.fromkeys(found))
    made["lead"] = Chain([rule for fam in FAMILIES for rule in _looked_up(fam)])
    into = "fib daddr type local goto lead"
    others = [f"{match} accept" for match in ("iifname @ends", *sent_by)]
    made["published"] = Chain([*others, into], Base("nat", "prerouting", _DSTNAT))
    made["published_here"] = Chain([*_loopback("daddr"), into], Base("nat", "output", _DSTNAT))
    reserved = [rule for fam in FAMILIES for rule in _reserved(fam)]
    made["reserved"] = Chain([*_loopback("saddr"), *reserved], Base("filter", "postrouting", _AFTER_SRCNAT))
    # Packets of the host's own programs, which the chain "output" has seen with lo as their output interface.
    own = "oifname @ends ct status dnat iif 0 goto towards"
    made["led"] = Chain([own], Base("filter", "postrouting"))
    return made, sets


def lead_name(one: Publication, address: str) -> str:
    """Return the name of the chain that forwards to one port of one environment."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return f"lead.{one.host.protocol}.{one.inside}.{digest}"


def let_in(one: Publication, *, reply: bool) -> Rule:
    """Return the match for packets of connections that the published port *one* forwarded.

    :param reply: whether to match packets of the reply direction instead of the original one.
    """
    port = one.host
    words = (
        f"ct status dnat meta l4proto {port.protocol} {port.protocol} {'sport' if reply else 'dport'} {one.inside}"
        f" ct original proto-dst {port.port}"
    )
    if port.address:
        fam = one.families[0]
        address = ipaddress.ip_address(port.address)
        words += f" meta nfproto {fam} ct original {FAMILIES[fam].word} daddr {address}"
    return words


def _lead(fam: str, address: str, one: Publication) -> Rule:
    parsed = ipaddress.ip_address(address)
    target = f"[{parsed}]" if parsed.version == 6 else str(parsed)
    return f"meta nfproto {fam} meta l4proto {one.host.protocol} dnat {FAMILIES[fam].word} to {target}:{one.inside}"


def _looked_up(fam: str) -> list[Rule]:
    key = f"meta nfproto {fam} meta l4proto . th dport"
    return [f"{key} . {FAMILIES[fam].word} daddr vmap @published_at_{fam}", f"{key} vmap @published_{fam}"]


def _reserved(fam: str) -> list[Rule]:
    begun, dropped = f"ct direction original meta nfproto {fam} meta l4proto . th sport", "fib saddr type local drop"
    return [
        f"{begun} . {FAMILIES[fam].word} saddr @reserved_at_{fam} {dropped}",
        f"{begun} @reserved_{fam} {dropped}",
    ]


def _loopback(which: str) -> list[Rule]:
    return [f"{FAMILIES[fam].word} {which} {network} accept" for fam, network in _LOOPBACK.items()]


@functools.lru_cache(4096)
def _key(port: HostPort) -> bytes:
    address = ipaddress.ip_address(port.address).packed if port.address else b""
    return struct.pack(">B3xH2x", PROTOCOLS[port.protocol], port.port) + address
