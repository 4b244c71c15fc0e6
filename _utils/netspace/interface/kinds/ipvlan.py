"""Kind ``ipvlan``: the environment has its own addresses at one of this host's NICs, under the NIC's MAC.

It suits networks that accept only one MAC per port (Wi-Fi, many clouds and switches). With ``l2`` the environment
resolves neighbours itself. With ``l3`` and ``l3s`` the network must route the addresses to this host; with ``l3s``
packets pass the host's netfilter as well. Environments on one parent never reach each other through the parent
(``private``), or only through an external switch (``vepa``).

Mode and isolation belong to the parent, so all interfaces on one parent must agree about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from netspace.interface import lan
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Link
from netspace.netlink.templates import Words

NEEDS = "ipvlan"
LINK = "ipvlan"
FILTER = "inside"
FROM_HOST = True
FIXED = ("parent",)
_MODE, _FLAGS = 1, 2  # IFLA_IPVLAN_MODE, IFLA_IPVLAN_FLAGS
_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_ISOLATIONS = {"bridge": 0, "private": 1, "vepa": 2}


class Ipvlan(lan.Lan, frozen=True, kw_only=True, tag="ipvlan"):
    """The environment's own addresses on one of the host's network devices, under that device's MAC.

    :param parent: the host's network device, such as ``eth1``.
    :param mode: ``l2``, ``l3`` or ``l3s``; the same for all interfaces on one parent.
    :param isolation: ``private``: no traffic with other interfaces on the same parent; ``vepa``: only through an
        external switch that reflects it; the same for all interfaces on one parent.
    """

    parent: str
    mode: Literal["l2", "l3", "l3s"] = "l2"
    isolation: Literal["private", "vepa"] = "private"

    def network(self) -> str:
        return self.parent

    def problems(self) -> Iterable[tuple[str, str]]:
        if reason := lan.name_problem(self.parent):
            yield "parent", reason
        yield from lan.address_problems(self)

    def shares(self) -> Iterable[tuple[str, str, str]]:
        yield "kind", f"the use of {self.parent}", "ipvlan"
        yield "mode", f"the mode of ipvlan on {self.parent}", self.mode
        yield "isolation", f"the isolation of ipvlan on {self.parent}", self.isolation


def parents(spec: Ipvlan) -> tuple[str, ...]:
    return (spec.parent,)


def lacks(spec: Ipvlan, links: Mapping[str, Link]) -> str:
    return lan.lacks_parent(spec.parent, spec.mtu, links)


def ends(spec: Ipvlan, place: EndpointContext) -> Endpoints:
    """Return the inner end only. It has the parent's MAC."""
    details = {"parent": spec.parent, "mode": spec.mode, "isolation": spec.isolation}
    end = lan.inside(spec, place, LINK, details, mac="", neighbours=spec.mode == "l2")
    return Endpoints(inside=end, made_as=place.host_name)


def _data(details: Mapping[str, Any]) -> Words:
    return (
        ("IFLA_IPVLAN_MODE", _MODES[details["mode"]]),
        ("IFLA_IPVLAN_FLAGS", _ISOLATIONS[details["isolation"]]),
    )


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the network device on its parent, in the namespace *far*."""
    end = wanted.inside
    assert end is not None
    parent = parents[end.details["parent"]]
    data = _data(end.details)
    return [requests.add_link(LINK, wanted.made_as, mtu=end.mtu, arp=end.arp, parent=parent, data=data, namespace=far)]


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    def name(names: Mapping[str, int], type_: int) -> str:
        value = reading.number(link.data.get(type_, b""))
        return next((name for name, number in names.items() if number == value), str(value))

    return {
        "parent": hosts.get(link.parent, ""),
        "mode": name(_MODES, _MODE),
        "isolation": name(_ISOLATIONS, _FLAGS),
    }


def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    if now is None or now.details == wanted.details:
        return []
    return [requests.change_link(index, LINK, _data(wanted.details))]
