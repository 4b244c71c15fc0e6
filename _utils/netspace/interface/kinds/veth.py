"""Kind ``veth``: a routed point-to-point pair; nothing passes but what ``allow`` names."""

from __future__ import annotations

from netspace.spec.types import Address, Allow, Interface


class Veth(Interface, frozen=True, tag="veth"):
    """A veth pair between the environment and the host.

    :param ipv4: a fixed address; absent: a stable one out of ``network:ipv4``.
    :param ipv6: likewise.
    :param mtu: bytes.
    :param allow: exceptions to the default drop.
    """

    ipv4: Address | None = None
    ipv6: Address | None = None
    mtu: int = 1500
    allow: tuple[Allow, ...] = ()
