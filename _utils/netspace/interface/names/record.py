"""Known answers about names, on disk: they count after a reboot, before the network is there.

``<state>/names.json`` is written by the resolver's process alone (``refresher``), and read by all others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.interface.names import answers
from netspace.interface.names.answers import IpNetwork, Known
from netspace.layout import Layout
from netspace.spec.types import Filtered, Interface

VERSION = 1
Key = tuple[str, str]
"""A name, and ``ipv4`` or ``ipv6``."""


class _File(msgspec.Struct, frozen=True):
    version: int
    names: dict[str, dict[str, Known]] = {}


def path(layout: Layout) -> Path:
    return layout.state / "names.json"


def read(layout: Layout) -> dict[Key, Known]:
    """Return all known answers. A damaged file counts as none: the names are then asked again."""
    try:
        value = files.read_json(path(layout))
        found = msgspec.convert(value, _File) if value is not None else _File(VERSION)
        for families in found.names.values():
            for known in families.values():
                for address in known.until:
                    ipaddress.ip_address(address)
    except (StateError, OSError, ValueError):
        return {}
    if found.version != VERSION:
        return {}
    return {(name, family): known for name, families in found.names.items() for family, known in families.items()}


def begin(layout: Layout) -> None:
    """Make the file, without an answer."""
    files.write_json(path(layout), msgspec.to_builtins(_File(VERSION)))


def write(layout: Layout, known: Mapping[Key, Known]) -> None:
    """Write the answers. An apply removes the file, with the service (``host.parts``)."""
    names: dict[str, dict[str, Known]] = {}
    for (name, family), one in sorted(known.items()):
        names.setdefault(name, {})[family] = one
    files.write_json(path(layout), msgspec.to_builtins(_File(VERSION, names)))


def asked_for(interfaces: Iterable[Interface]) -> set[Key]:
    """Return the names that rules of these interfaces have, each with the families to ask for."""
    return {
        (str(rule.name), f"ipv{network.version}")
        for spec in interfaces
        if isinstance(spec, Filtered)
        for rule in spec.allow
        if rule.name is not None
        for network in rule.networks
    }


def networks(layout: Layout, now: float) -> dict[str, tuple[IpNetwork, ...]]:
    """Return the addresses that each name has now, as networks of one. Those that a rule refuses are among them."""
    found: dict[str, tuple[IpNetwork, ...]] = {}
    for (name, _), known in read(layout).items():
        found[name] = (*found.get(name, ()), *(ipaddress.ip_network(one) for one in answers.ends(known, now)))
    return found
