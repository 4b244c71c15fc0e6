"""Known DNS answers on disk. After a reboot they count even before the network is up.

``<state>/names.json`` is written only by the process that looks up names (``refresher``), and read by all others. The
owner of a name chooses how many addresses it has. So the numbers of names and addresses are bounded for the whole host
(:data:`KEYS`, :data:`ADDRESSES`). Within these bounds, the file never has more than the :data:`MOST` bytes that a
reader accepts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from netspace import files
from netspace.interface.names import answers
from netspace.interface.names.answers import IpNetwork, Known
from netspace.layout import Layout
from netspace.spec.types import ADDRESSES_OF_NAME, Filtered, Interface

VERSION = 1
KEYS = 16384
"""The most names of a host that are looked up; a name in both families counts twice."""
ADDRESSES = 65536
"""The most addresses that are kept on a host; at least :data:`KEYS`, so that each name may have some."""
MOST = 32 * 1024 * 1024
"""The most bytes of the file. A name takes about 1300, with its longest text; an address 110."""
Key = tuple[str, str]
"""A name, and ``ipv4`` or ``ipv6``."""


class _File(msgspec.Struct, frozen=True):
    version: int
    names: dict[str, dict[str, Known]] = {}


def path(layout: Layout) -> Path:
    return layout.state / "names.json"


def read(layout: Layout) -> dict[Key, Known]:
    """Return all known answers. A damaged file counts as empty, so the names are looked up again."""
    try:
        raw = files.read(path(layout), MOST + 1)
        if len(raw) > MOST:
            return {}
        found = msgspec.json.decode(raw, type=_File)
        for families in found.names.values():
            for known in families.values():
                for address in known.until:
                    ipaddress.ip_address(address)
    except (OSError, ValueError, RecursionError):
        return {}
    if found.version != VERSION:
        return {}
    return {(name, family): known for name, families in found.names.items() for family, known in families.items()}


def begin(layout: Layout) -> None:
    """Create the file of known DNS answers, with no answer in it yet."""
    write(layout, {})


def write(layout: Layout, known: Mapping[Key, Known]) -> None:
    """Write the answers that :func:`bounded` returned to a file.

    The service that looks names up reads this file. An apply that removes the service removes the file, too.
    """
    names: dict[str, dict[str, Known]] = {}
    for (name, family), one in known.items():
        names.setdefault(name, {})[family] = one
    files.write(path(layout), msgspec.json.encode(_File(VERSION, names), order="sorted") + b"\n")


def bounded(known: Mapping[Key, Known]) -> dict[Key, Known]:
    """Return the answers with at most :data:`ADDRESSES` addresses. Pure.

    If there are more, the names with the most addresses lose some; addresses of earlier answers go first. A name that
    loses addresses of its last answer gets the code ``name-refused``.

    :param known: the answers for at most :data:`KEYS` names.
    """
    most = ADDRESSES_OF_NAME
    while most > 1 and sum(min(len(one.until), most) for one in known.values()) > ADDRESSES:
        most //= 2
    return {key: one if len(one.until) <= most else _cut(one, most) for key, one in known.items()}


def _cut(known: Known, most: int) -> Known:
    current = known.current[:most]
    earlier = sorted(known.until.keys() - set(known.current), key=lambda one: (-known.until[one], one))
    until = {one: known.until[one] for one in (*current, *earlier[: most - len(current)]) if one in known.until}
    if len(known.current) <= most:
        return msgspec.structs.replace(known, until=until)
    why = f"it has {len(known.current)} addresses; with so many names on this host, {most} of them count"
    return msgspec.structs.replace(known, until=until, current=current, code="name-refused", why=why)


def asked_for(interfaces: Iterable[Interface]) -> set[Key]:
    """Return the names in these interfaces' rules, each with the address families to look up."""
    return {
        (str(rule.name), f"ipv{network.version}")
        for spec in interfaces
        if isinstance(spec, Filtered)
        for rule in spec.allow
        if rule.name is not None
        for network in rule.networks
    }


def unkept(known: Mapping[Key, Known]) -> str:
    """Return the reason why the host can't look up one more name; empty if it can."""
    return f"this host's rules have more than {KEYS} names; remove some" if len(known) >= KEYS else ""


def networks(layout: Layout, now: float) -> dict[str, tuple[IpNetwork, ...]]:
    """Return the present addresses of each name, each as a network of one address.

    Addresses that a rule refuses are included.
    """
    found: dict[str, tuple[IpNetwork, ...]] = {}
    for (name, _), known in read(layout).items():
        found[name] = (*found.get(name, ()), *(ipaddress.ip_network(one) for one in answers.ends(known, now)))
    return found
