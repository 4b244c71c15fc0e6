"""Kind ``veth``: a routed point-to-point pair; only connections that ``allow`` names pass.

There is no bridge, so environments share no link layer. Both ends have the same MAC and don't resolve neighbours
(NOARP): a frame's destination is always the sender's own MAC, which is the other end's as well. So there is no ARP and
no neighbour discovery that could be forged. An environment can't fill the host's neighbour table, because its only
neighbour is the gateway.

Inside, ``eth0`` has the environment's address with a full prefix (/32 or /128), and a default route by the gateway,
which is the second address of the declared range. Outside, the host's end has the gateway's address and a route to the
environment's address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.interface.endpoints import INSIDE_INDEX, INSIDE_NAME, Endpoint, EndpointContext, Endpoints
from netspace.netlink import requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Route
from netspace.spec.publish import Routed
from netspace.spec.types import Address

NEEDS = "veth"
LINK = "veth"
FILTER = "host"
_ANYWHERE = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}
_LENGTH = {"ipv4": 32, "ipv6": 128}


class Veth(Routed, frozen=True, tag="veth"):
    """A veth pair between the environment and the host.

    :param ipv4: a fixed address; absent: a stable one from ``network:ipv4``.
    :param ipv6: a fixed address; absent: a stable one from ``network:ipv6``.
    :param mtu: the largest packet in bytes.
    """

    ipv4: Address | None = None
    ipv6: Address | None = None
    mtu: int = 1500


def ends(spec: Any, place: EndpointContext) -> Endpoints:
    """Return the inner end and the outer end of the veth pair."""
    families = sorted(place.addresses)

    def alone(addresses: dict[str, str]) -> tuple[str, ...]:
        return tuple(sorted(f"{addresses[family]}/{_LENGTH[family]}" for family in families))

    return Endpoints(
        inside=Endpoint(
            name=INSIDE_NAME,
            mac=place.mac,
            mtu=spec.mtu,
            kind=LINK,
            arp=False,
            addresses=alone(dict(place.addresses)),
            routes=tuple(Route(_ANYWHERE[family], via=place.gateways[family]) for family in families),
        ),
        outside=Endpoint(
            name=place.host_name,
            mac=place.mac,
            mtu=spec.mtu,
            kind=LINK,
            arp=False,
            alias=place.alias,
            addresses=alone(dict(place.gateways)),
            routes=tuple(
                Route(f"{place.addresses[family]}/{_LENGTH[family]}", source=place.gateways[family])
                for family in families
            ),
            ipv4={
                "forwarding": int(place.forwarding),
                "rp_filter": 1,
                "proxy_arp": 0,
                "accept_redirects": 0,
                "secure_redirects": 0,
                "send_redirects": 0,
                "accept_source_route": 0,
                "accept_local": 0,
                "route_localnet": 0,
            },
            accept_ra=0 if "ipv6" in families else None,
        ),
    )


def create(wanted: Endpoints, host: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the pair. It is sent from the environment's namespace.

    :param host: a descriptor of the host's namespace.
    """
    inside, outside = wanted.inside, wanted.outside
    assert inside is not None and outside is not None
    return [
        requests.add_veth(
            inside.name, inside.mac, inside.mtu, outside.name, outside.mac, host, index=INSIDE_INDEX, arp=inside.arp
        )
    ]
