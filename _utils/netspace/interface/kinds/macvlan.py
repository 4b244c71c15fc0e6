"""Kind ``macvlan``: the environment is a host of its own on the network of one of this host's NICs.

The environment has its own MAC on that network. Environments on one parent never reach each other through the parent:
``private`` drops frames from one to another, ``vepa`` sends them out to the switch, which decides. The kernel's modes
``bridge`` and ``passthru`` aren't offered: ``bridge`` joins the environments, ``passthru`` takes the whole NIC. The
host and the environment reach each other only through an external router.
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

NEEDS = "macvlan"
LINK = "macvlan"
FILTER = "inside"
FROM_HOST = True
FIXED = ("parent",)
_MODE = 1  # IFLA_MACVLAN_MODE
_NAMES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}


class Macvlan(lan.Lan, frozen=True, kw_only=True, tag="macvlan"):
    """A network device with its own MAC on one of the host's network devices.

    :param parent: the host's network device, such as ``eth1``.
    :param mode: ``private``: no traffic with other interfaces on the same parent; ``vepa``: only through an external
        switch that reflects it.
    """

    parent: str
    mode: Literal["private", "vepa"] = "private"

    def network(self) -> str:
        return self.parent

    def problems(self) -> Iterable[tuple[str, str]]:
        if reason := lan.name_problem(self.parent):
            yield "parent", reason
        yield from lan.address_problems(self)

    def shares(self) -> Iterable[tuple[str, str, str]]:
        yield "kind", f"the use of {self.parent}", "macvlan"


def parents(spec: Macvlan) -> tuple[str, ...]:
    return (spec.parent,)


def lacks(spec: Macvlan, links: Mapping[str, Link]) -> str:
    return lan.lacks_parent(spec.parent, spec.mtu, links)


def ends(spec: Macvlan, place: EndpointContext) -> Endpoints:
    """Return the desired inner end. There is no end on the host."""
    details = {"parent": spec.parent, "mode": spec.mode}
    return Endpoints(inside=lan.inside(spec, place, LINK, details), made_as=place.host_name)


def _data(details: Mapping[str, Any]) -> Words:
    return (("IFLA_MACVLAN_MODE", details["mode"]),)


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the network device on its parent, in the namespace *far*."""
    end = wanted.inside
    assert end is not None
    parent = parents[end.details["parent"]]
    data = _data(end.details)
    return [requests.add_link(LINK, wanted.made_as, mtu=end.mtu, mac=end.mac, parent=parent, data=data, namespace=far)]


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    mode = reading.number(link.data.get(_MODE, b""))
    return {"parent": hosts.get(link.parent, ""), "mode": _NAMES.get(mode, str(mode))}


def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    if now is None or now.details == wanted.details:
        return []
    return [requests.change_link(index, LINK, _data(wanted.details))]
