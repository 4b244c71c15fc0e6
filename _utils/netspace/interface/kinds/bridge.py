"""Kind ``bridge``: the environment is attached to a bridge that the operator has created.

The interface is a veth pair whose outer end is a port of the bridge. The port is isolated: it reaches the bridge itself
and ports that aren't isolated (say, the NIC), but not the isolated port of another environment. netspace doesn't change
the bridge. A bridge adopts the lowest MAC of its ports, so the outer end has a high MAC (``fe:``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netspace.interface import lan
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.interface.kinds import veth
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Link

NEEDS = "veth"
LINK = "veth"
FILTER = "inside"
_ISOLATED = 33  # IFLA_BRPORT_ISOLATED


class Bridge(lan.Lan, frozen=True, kw_only=True, tag="bridge"):
    """A port of one of the host's bridges.

    :param bridge: the host's bridge, such as ``br0``.
    :param isolated: whether the port can't reach other isolated ports. **If false, environments with ports that aren't
        isolated can reach it**, as far as ``allow`` lets them.
    :param mtu: the largest packet in bytes; must equal the bridge's.
    """

    bridge: str
    isolated: bool = True

    def network(self) -> str:
        return self.bridge

    def problems(self) -> Iterable[tuple[str, str]]:
        if reason := lan.name_problem(self.bridge):
            yield "bridge", reason
        yield from lan.address_problems(self)


def parents(spec: Bridge) -> tuple[str, ...]:
    return (spec.bridge,)


def lacks(spec: Bridge, links: Mapping[str, Link]) -> str:
    bridge = links.get(spec.bridge)
    if bridge is None:
        return f"this host has no bridge {spec.bridge}: create it (ip link add {spec.bridge} type bridge)"
    if bridge.kind != "bridge":
        return f"the network device {spec.bridge} is not a bridge: name one, or use the kind macvlan with it as parent"
    if bridge.mtu != spec.mtu:  # the bridge would adopt its port's mtu
        return f"the bridge {spec.bridge} has an mtu of {bridge.mtu}: declare mtu: {bridge.mtu}, or change the bridge's"
    return ""


def ends(spec: Bridge, place: EndpointContext) -> Endpoints:
    """Return the inner end, and the outer end as a port of the bridge."""
    return Endpoints(
        inside=lan.inside(spec, place, LINK, {}),
        outside=Endpoint(
            name=place.host_name,
            mac=f"fe{place.mac[2:]}",
            mtu=spec.mtu,
            alias=place.alias,
            accept_ra=0 if place.ipv6 else None,  # so that the kernel gives it no address
            kind=LINK,
            details={"bridge": spec.bridge, "isolated": spec.isolated},
        ),
    )


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink messages that create the veth pair. ``change`` makes its outer end a port of the bridge."""
    return veth.create(wanted, far, parents)


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    if "bridge" not in like.details:
        return {}
    return {
        "bridge": hosts.get(link.master, ""),
        "isolated": bool(reading.number(link.port.get(_ISOLATED, b""))),
    }


def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink messages that attach the outer end to the bridge, and isolate it before it is up."""
    had = {} if now is None else now.details
    if "bridge" not in wanted.details or had == wanted.details:
        return []
    isolated = (("IFLA_BRPORT_ISOLATED", int(wanted.details["isolated"])),)
    messages = [requests.change_port(index, "bridge", isolated)]
    if had.get("bridge") != wanted.details["bridge"]:
        # A new port isn't isolated, so it stays down until it is.
        plugged = [requests.set_link(index, up=False), requests.join(index, parents[wanted.details["bridge"]])]
        messages = plugged + messages
        if now is not None and now.up:
            messages.append(requests.set_link(index, up=True))
    return messages
