"""Kind ``none``: only ``lo``. An environment that only exchanges messages needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from netspace.interface.endpoints import EndpointContext, Endpoints
from netspace.netlink.connection import Message
from netspace.spec.types import Interface

NEEDS = ""
LINK = ""
FILTER = ""


class NoInterface(Interface, frozen=True, tag="none"):
    """No interface but loopback (the default)."""

    NONE: ClassVar[bool] = True


def ends(spec: NoInterface, place: EndpointContext) -> Endpoints:
    """Return no ends, since there is no interface."""
    return Endpoints()


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return no messages, since there is no network device to create."""
    return []
