"""Allocation of interfaces' addresses. Pure.

An interface keeps its address as long as the interface exists and the range allows the address. The search for a new
address starts at a position that only the environment's name decides, and takes the first free address. So the same
declaration tends to give the same addresses on a new host.

Three addresses of a range are never allocated: the first (IPv4's network, IPv6's subnet-router anycast, RFC 4291
section 2.6.1), IPv4's last (broadcast), and the second, the *gateway*, which is the host's own address at its end of
every interface.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Collection, Mapping

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Allocation(msgspec.Struct, frozen=True):
    """The result of an allocation.

    :param addresses: the addresses by name.
    :param refused: for each name without an address, the reason.
    """

    addresses: Mapping[str, str]
    refused: Mapping[str, str]


# One allocation parses each address several times.
_parsed = functools.lru_cache(maxsize=16384)(ipaddress.ip_address)


def gateway(network: Network) -> str | None:
    """Return the host's address in *network*; None if the range is too small."""
    return str(network[1]) if network.num_addresses >= 4 else None


def usable(network: Network) -> range:
    """Return the offsets, from the first address of *network*, of the addresses that can be allocated."""
    last = network.num_addresses - (1 if network.version == 4 else 0)
    return range(2, max(last, 2)) if network.num_addresses >= 4 else range(0)


def allocate(network: Network, wanted: Mapping[str, str | None], recorded: Mapping[str, str]) -> Allocation:
    """Allocate an address of *network* for every name in *wanted*.

    :param wanted: by name, a fixed address, or None for any address.
    :param recorded: earlier addresses by name. Names that aren't in *wanted* keep theirs.
    """
    others = dict(recorded)
    for name in wanted:
        others.pop(name, None)
    held = dict(zip(others.values(), others, strict=True))
    while True:
        result = _allocate(network, wanted, recorded, held)
        # So each round adds to held, and the loop ends.
        given = {one for one in result.addresses.values() if one not in held}
        # A refused name keeps its recorded address, so no other name may get it.
        kept = {recorded[name]: name for name in result.refused.keys() & recorded.keys() if recorded[name] in given}
        if not kept:
            return result
        held |= kept


def _allocate(
    network: Network, wanted: Mapping[str, str | None], recorded: Mapping[str, str], held: Mapping[str, str]
) -> Allocation:
    """Allocate addresses in one pass.

    :param held: addresses that are reserved, each with the only name that may have it.
    """
    places = usable(network)
    given: dict[str, str] = {}
    refused: dict[str, str] = {}
    taken = dict(held)
    for name in sorted(name for name in wanted if wanted[name] is not None):
        address = str(wanted[name])
        reason = _unusable(network, places, address)
        if not reason and taken.get(address, name) != name:
            reason = f"{address} belongs to {taken[address]}; remove or change that one first"
        if reason:
            refused[name] = reason
        else:
            given[name] = address
            taken[address] = name
    for name in refused.keys() & recorded.keys():  # a refused name keeps its recorded address
        taken.setdefault(recorded[name], name)
    free = sorted(name for name in wanted if wanted[name] is None)
    for name in free:
        address = recorded.get(name, "")
        if address and taken.get(address, name) == name and not _unusable(network, places, address):
            given[name] = address
            taken[address] = name
    for name in free:
        if name in given:
            continue
        place = _free_place(name, network, places, taken)
        if place is None:
            count = places.stop - places.start
            refused[name] = f"no address is left in {network} (all {count} are given); declare a larger range"
            continue
        given[name] = str(network[place])
        taken[given[name]] = name
    return Allocation(given, refused)


def first(network: Network, name: str) -> str:
    """Return the address that a new interface gets unless it is taken; empty if the range has none."""
    place = _free_place(name, network, usable(network), ())
    return "" if place is None else str(network[place])


def _free_place(name: str, network: Network, places: range, taken: Collection[str]) -> int | None:
    size = places.stop - places.start  # len() can't count an IPv6 range
    if size == 0:
        return None
    start = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % size
    for step in range(min(size, len(taken) + 1)):
        place = places.start + (start + step) % size
        if str(network[place]) not in taken:
            return place
    return None


def _place(network: Network, address: str) -> int:
    return int(_parsed(address)) - int(network.network_address)


def fits(network: Network, address: str) -> bool:
    """Return whether *address* lies in *network* and can be allocated."""
    return not _unusable(network, usable(network), address)


def _unusable(network: Network, places: range, address: str) -> str:
    parsed = _parsed(address)
    if parsed.version != network.version or parsed not in network:
        return f"{address} is outside of {network}"
    if not places.start <= _place(network, address) < places.stop:
        return f"{address} is reserved in {network} (the network's own, the host's or the broadcast address)"
    return ""
