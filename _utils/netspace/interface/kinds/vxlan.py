"""Kind ``vxlan``: the environment's own layer-2 network across hosts (RFC 7348).

The tunnel's packets (UDP) leave and reach this host in the host's network namespace; the environment sees only the
frames in them. **The frames are neither encrypted nor authenticated**: anybody who can send UDP to the port can send
into the network. Use this kind on a network that you trust, or use ``wireguard``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from netspace.interface import lan
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Link
from netspace.netlink.templates import Given, given_address, given_number, given_port
from netspace.spec.types import Address

NEEDS = "vxlan"
LINK = "vxlan"
FILTER = "inside"
FROM_HOST = True
FIXED = ("id", "port", "group", "parent", "local")
# IFLA_VXLAN_*
_ID, _GROUP, _LINK, _LOCAL, _PORT, _GROUP6, _LOCAL6 = 1, 2, 3, 4, 15, 16, 17


class Vxlan(lan.Lan, frozen=True, kw_only=True, tag="vxlan"):
    """A layer-2 network that is tunnelled over UDP.

    :param id: the network's number (VNI), 1 to 16777215.
    :param remote: the other host's address; either this or ``group``.
    :param group: a multicast group that all hosts of the network join, on ``parent``.
    :param local: the address from which this host sends; absent: the host's routes choose it.
    :param parent: the host's network device that carries the tunnel; required with ``group``.
    :param port: the UDP port.
    :param mtu: the largest packet in bytes. The default fits an outer mtu of 1500, with IPv6 too.
    """

    vni: int = msgspec.field(name="id")
    remote: Address | None = None
    group: Address | None = None
    local: Address | None = None
    parent: str | None = None
    port: int = 4789
    mtu: int = 1430

    def network(self) -> str:
        return f"vxlan {self.vni} at UDP port {self.port}"

    def problems(self) -> Iterable[tuple[str, str]]:
        if not 1 <= self.vni < 1 << 24:
            yield "id", f"{self.vni} is out of 1..16777215"
        if not 1 <= self.port <= 65535:
            yield "port", f"{self.port} is out of 1..65535"
        if (self.remote is None) == (self.group is None):
            yield "remote", "give either remote (another host's address) or group (a multicast address)"
        if self.parent is not None and (reason := lan.name_problem(self.parent)):
            yield "parent", reason
        if self.group is not None and self.parent is None:
            yield "parent", "must be given with group: it says where the group is joined"
        family = {ipaddress.ip_address(one).version for one in (self.remote, self.group, self.local) if one is not None}
        if len(family) > 1:
            yield "local", f"{self.local} and the other end are of different families"
        for key, address, many in (
            ("remote", self.remote, False),
            ("group", self.group, True),
            ("local", self.local, False),
        ):
            if address is None:
                continue
            parsed = ipaddress.ip_address(address)
            if parsed.is_multicast != many or parsed.is_unspecified:
                yield key, f"{address}: expected {'a multicast group' if many else 'one host'}"
        yield from lan.address_problems(self)

    def claims(self) -> Iterable[tuple[str, str]]:
        yield "id", self.network()

    def shares(self) -> Iterable[tuple[str, str, str]]:
        yield "port", f"UDP port {self.port}", "vxlan's"

    def listens(self) -> Iterable[tuple[str, int]]:
        yield "port", self.port


def parents(spec: Vxlan) -> tuple[str, ...]:
    return () if spec.parent is None else (spec.parent,)


def lacks(spec: Vxlan, links: Mapping[str, Link]) -> str:
    if spec.parent is None:
        return ""
    room = 70 if ":" in (spec.remote or spec.group or "") else 50
    return lan.lacks_parent(spec.parent, spec.mtu, links, room=room, up=True, alone=False)


def ends(spec: Vxlan, place: EndpointContext) -> Endpoints:
    """Return the desired inner end. There is no end on the host."""
    details: dict[str, Any] = {"id": spec.vni, "port": spec.port}
    for key in ("remote", "group", "local", "parent"):
        value = getattr(spec, key)
        if value is not None:
            details[key] = str(value)
    return Endpoints(inside=lan.inside(spec, place, LINK, details), made_as=place.host_name)


def _address(name: str, address: str) -> tuple[str, Given]:
    return f"{name}6" if ":" in address else name, given_address(address)


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the network device in the namespace *far*.

    The tunnel's packets stay in the host's namespace.
    """
    end = wanted.inside
    assert end is not None
    values = end.details
    data = [
        ("IFLA_VXLAN_ID", given_number(values["id"])),
        ("IFLA_VXLAN_PORT", given_port(values["port"])),
        _address("IFLA_VXLAN_GROUP", values.get("remote") or values["group"]),
    ]
    if "local" in values:
        data.append(_address("IFLA_VXLAN_LOCAL", values["local"]))
    if "parent" in values:
        data.append(("IFLA_VXLAN_LINK", given_number(parents[values["parent"]])))
    return [requests.add_link(LINK, wanted.made_as, mtu=end.mtu, mac=end.mac, data=tuple(data), namespace=far)]


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    def address(*types: int) -> str:
        value = next((link.data[type_] for type_ in types if type_ in link.data), b"")
        return str(ipaddress.ip_address(value)) if len(value) in (4, 16) and any(value) else ""

    found: dict[str, Any] = {
        "id": reading.number(link.data.get(_ID, b"")),
        "port": int.from_bytes(link.data.get(_PORT, b""), "big"),
    }
    far, local, parent = address(_GROUP, _GROUP6), address(_LOCAL, _LOCAL6), reading.number(link.data.get(_LINK, b""))
    if far:
        found["group" if ipaddress.ip_address(far).is_multicast else "remote"] = far
    if local:
        found["local"] = local
    if parent:
        found["parent"] = hosts.get(parent, "")
    return found


def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    if now is None or now.details == wanted.details or "remote" not in wanted.details:
        return []
    return [requests.change_link(index, LINK, (_address("IFLA_VXLAN_GROUP", wanted.details["remote"]),))]
