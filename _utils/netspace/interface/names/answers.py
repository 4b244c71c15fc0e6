"""DNS answers about names in rules: which addresses count, and for how long. Pure: times are parameters.

The owner of a name chooses its addresses, so an answer is hostile input. These rules bound the harm that an answer can
do:

1. An address that isn't public counts only if the rule's ``cidr`` lies in the same special block (RFC 6890). So a name
  can't be turned to loopback, to a private network, or to a cloud's metadata service (DNS rebinding).
2. Loopback, multicast, reserved and IPv4-mapped addresses never count, nor do the host's own.
3. An address in a network of one of the host's interfaces counts only if the rule's ``cidr`` lies in that network.
  Packets reach these neighbours under the host's address, which they may trust.
4. An answer has at most :data:`MOST` addresses, and a set at most ``spec.types.ADDRESSES_OF_NAME``.
5. A time to live is between :data:`FLOOR` and :data:`CEILING`.

An address counts until its time to live ends. If no resolver answers by then, the addresses of the last answer count
for :data:`STALE` seconds more. An answer that says that the name doesn't exist counts as an answer without addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from netspace.spec.types import ADDRESSES_OF_NAME

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Code = Literal["", "name-absent", "name-refused", "name-unanswered"]
"""Why the last question has no usable answer: the name doesn't exist, the answer is refused, or no answer came.

Empty if the answer is usable.
"""

MOST = 64
"""The most addresses of one family in an answer."""
FLOOR, CEILING = 60.0, 86400.0
"""Bounds of a time to live, in seconds."""
STALE = 86400.0
"""Seconds for which the last answer counts after its time to live, if no resolver answers."""
RETRY, SLOWEST = 10.0, 300.0
"""Seconds from a failed question to the next, at first and at most."""

# RFC 6890 and IANA's registries of special-purpose addresses. Of IPv6, only 2000::/3 is public.
_NEVER = tuple(
    map(ipaddress.ip_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/32", "ff00::/8"))
)
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            *("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
            *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fc00::/7", "fe80::/10"),
            *("::/3", "4000::/2", "8000::/1"),
        ),
    )
)


class Own(msgspec.Struct, frozen=True):
    """The host's own addresses, and the networks that its interfaces are in.

    A prefix of one address (/32, /128) doesn't count as a network.
    """

    addresses: frozenset[str] = frozenset()
    networks: tuple[IpNetwork, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Own:
        """Return the host's own addresses and networks, from texts such as ``198.51.100.7/24``."""
        every = [ipaddress.ip_interface(one) for one in texts]
        networks = {one.network for one in every if one.network.num_addresses > 1}
        return cls(frozenset(str(one.ip) for one in every), tuple(sorted(networks, key=str)))


class Known(msgspec.Struct, frozen=True):
    """The state of one name in one address family.

    :param until: for each address, when its time to live ends, in seconds since the epoch.
    :param current: the addresses of the last answer.
    :param asked: when the last question was asked, in seconds since the epoch.
    :param due: when to ask next, in seconds since the epoch.
    :param failures: the number of questions in a row without a usable answer.
    :param code: the code of the last failure; empty if there was none.
    :param why: the reason of the last failure, for an operator.
    """

    until: dict[str, float] = {}
    current: tuple[str, ...] = ()
    asked: float = 0.0
    due: float = 0.0
    failures: int = 0
    code: Code = ""
    why: str = ""


def answered(before: Known, addresses: Mapping[str, float], now: float) -> Known:
    """Return a name's state after an answer.

    :param before: the name's state before the answer.
    :param addresses: the time to live of each address, in seconds. There are at most :data:`MOST`.
    """
    fresh = {one: now + min(max(ttl, FLOOR), CEILING) for one, ttl in sorted(addresses.items())}
    earlier = {one: end for one, end in before.until.items() if one not in fresh and now < end <= now + CEILING}
    lasting = sorted(earlier, key=lambda one: -earlier[one])[: ADDRESSES_OF_NAME - len(fresh)]
    due = min(fresh.values(), default=now + FLOOR)
    return Known({**{one: earlier[one] for one in lasting}, **fresh}, tuple(fresh), now, due)


def failed(before: Known, code: Code, why: str, now: float) -> Known:
    """Return a name's state after a question without a usable answer.

    If no answer came at all (``name-unanswered``), the addresses of the last answer still count after their time to
    live has ended. After any other failure, they don't.

    :param before: the name's state before the question.
    """
    if code == "name-absent":
        return msgspec.structs.replace(answered(before, {}, now), code=code, why=why)
    failures = min(before.failures + 1, 30)
    due = now + min(RETRY * 2 ** (failures - 1), SLOWEST)
    last = before if code == "name-unanswered" else msgspec.structs.replace(before, current=())
    kept = ends(last, now)
    until = {one: last.until[one] for one in kept}
    current = tuple(one for one in last.current if one in kept)
    return Known(until, current, now, due, failures, code, why)


def ends(known: Known, now: float) -> dict[str, float]:
    """Return when each address ceases to count, in seconds since the epoch.

    If the clock was set back, no address counts longer than the bounds.
    """
    current = set(known.current)
    return {
        one: min(end, now + CEILING) + (STALE if one in current else 0.0)
        for one, end in known.until.items()
        if end + (STALE if one in current else 0.0) > now
    }


def overdue(known: Known, now: float) -> bool:
    """Return whether it is time to ask about a name. If the clock was set back, it is."""
    return not now < known.due <= now + CEILING


def refusal(address: str, network: IpNetwork, own: Own) -> str:
    """Return why an address of a name doesn't count; empty if it does.

    :param network: the rule's ``cidr``; the whole family if the rule has none.
    :param own: the host's own addresses and networks.
    """
    parsed = ipaddress.ip_address(address)
    if any(parsed in one for one in _NEVER):
        return "can't be another host's address"
    if parsed not in network:
        return f"is not in {network}"
    if any(parsed in block and not _within(network, block) for block in _SPECIAL if block.version == parsed.version):
        return "is not public; to permit it, give its network as the rule's cidr"
    if str(parsed) in own.addresses:
        return "is this host's own"
    for near in own.networks:
        if parsed in near and not _within(network, near):
            return f"is in this host's network {near}; to permit it, give that network, or a part, as the rule's cidr"
    return ""


def _within(network: IpNetwork, block: IpNetwork) -> bool:
    return network.version == block.version and network.subnet_of(block)  # type: ignore[arg-type]


def counting(known: Known, network: IpNetwork, own: Own, now: float) -> tuple[dict[str, float], list[str]]:
    """Return the addresses that count now, with the seconds that each has left, and texts about refused addresses.

    :param network: the rule's ``cidr``.
    :param own: the host's own addresses and networks.
    """
    found, refused = {}, []
    for address, end in ends(known, now).items():
        if why := refusal(address, network, own):
            refused.append(f"{address} {why}")
        else:
            found[address] = end - now
    return found, refused


def problem(name: str, families: Mapping[str, Known], now: float) -> str:
    """Return an operator's text about the problem with a name; empty if there is no problem.

    :param families: the name's state for each address family (IPv4, IPv6) that netspace looks up for it.
    """
    if not families or all(not known.asked for known in families.values()):
        return f"{name} was not looked up yet"
    wrong = [known for known in families.values() if known.code]
    there = [end for known in families.values() for end in ends(known, now).values()]
    if not wrong and there:
        return ""
    why = wrong[0].why if wrong else "it has no address"
    hours = max(max(there, default=now) - now, 0.0) / 3600
    left = f"its last addresses count for {hours:.1f} h more" if there else "its rules let nothing pass"
    return f"{name}: {why}; {left}"


def code(families: Mapping[str, Known]) -> Code:
    """Return the code of a name's problem; empty if there is none, or if the name was not looked up yet.

    :param families: as for :func:`problem`.
    """
    found: list[Code] = [known.code for known in families.values() if known.code]
    if found or not families or any(known.until or not known.asked for known in families.values()):
        return found[0] if found else ""
    return "name-absent"
