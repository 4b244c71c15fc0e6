"""Kind ``vlan``: the environment is on one VLAN (IEEE 802.1Q) of one of this host's NICs.

The host adds and removes the tag; the environment sees no tag and can't send another one.
Each VLAN of a parent belongs to one environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from netspace.interface import lan
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Link
from netspace.netlink.templates import given_short

NEEDS = "8021q"
LINK = "vlan"
FILTER = "inside"
FROM_HOST = True
FIXED = ("parent", "id")
_ID = 1  # IFLA_VLAN_ID


class Vlan(lan.Lan, frozen=True, kw_only=True, tag="vlan"):
    """One VLAN of one of the host's network devices.

    :param parent: the host's network device, such as ``eth1``; it must be up.
    :param id: 1 to 4094.
    """

    parent: str
    vid: int = msgspec.field(name="id")

    def network(self) -> str:
        return f"vlan {self.vid} on {self.parent}"

    def problems(self) -> Iterable[tuple[str, str]]:
        if reason := lan.name_problem(self.parent):
            yield "parent", reason
        if not 1 <= self.vid <= 4094:
            yield "id", f"{self.vid} is out of 1..4094"
        yield from lan.address_problems(self)

    def claims(self) -> Iterable[tuple[str, str]]:
        yield "id", self.network()


def parents(spec: Vlan) -> tuple[str, ...]:
    return (spec.parent,)


def lacks(spec: Vlan, links: Mapping[str, Link]) -> str:
    return lan.lacks_parent(spec.parent, spec.mtu, links, up=True, alone=False)


def ends(spec: Vlan, place: EndpointContext) -> Endpoints:
    """Return the desired inner end. There is no end on the host."""
    details = {"parent": spec.parent, "id": spec.vid}
    return Endpoints(inside=lan.inside(spec, place, LINK, details), made_as=place.host_name)


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the network device on its parent, in the namespace *far*."""
    end = wanted.inside
    assert end is not None
    parent = parents[end.details["parent"]]
    data = (("IFLA_VLAN_ID", given_short(end.details["id"])),)
    return [requests.add_link(LINK, wanted.made_as, mtu=end.mtu, mac=end.mac, parent=parent, data=data, namespace=far)]


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    return {"parent": hosts.get(link.parent, ""), "id": reading.number(link.data.get(_ID, b""))}
