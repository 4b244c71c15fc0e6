"""Errors of netlink requests for interfaces, with a remedy for each.

Requests are repeated while an old network device is there.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence

from netspace.errors import MissingError, NetspaceError
from netspace.interface.changes import InterfaceChange
from netspace.netlink import connection, requests
from netspace.netlink.connection import Failure, Message, Socket
from netspace.nftables.library import LibraryMissingError, missing

# The kernel's answers while an old device is still there: EEXIST for a VLAN or VXLAN, the others for a MAC.
_OCCUPIED = (errno.EEXIST, errno.EBUSY, errno.EADDRINUSE)
_TRIES, _PAUSE = 40, 0.05


def refusal(failure: Failure, message: Message, one: InterfaceChange) -> Exception:
    """Return the error, with a remedy, for a request that the kernel refused."""
    if failure.code in connection.UNSUPPORTED and requests.makes_link(message) and one.kind is not None:
        return _missing(one.kind.NEEDS, failure, "declare an interface of another kind")
    if failure.code == errno.ENOENT and requests.limits_rate(message):
        return _missing("sch_tbf", failure, "leave rate out")
    if failure.code == errno.EEXIST and one.record is not None and one.record.host_end and requests.makes_link(message):
        return NetspaceError(
            f"the host has a network device {one.record.host_end} that netspace didn't make; remove or rename it"
        )
    return NetspaceError(f"the kernel refused: {failure}")


def patiently(where: Socket, messages: Sequence[Message], late: Callable[[int], bool]) -> dict[int, Failure]:
    """Send *messages*; repeat those that fail because an old network device still occupies a MAC, VLAN or VNI.

    The kernel removes a namespace's device only some time after the namespace.

    :param where: the socket in the network namespace of the devices.
    :param late: returns whether the message at this position may fail for that reason.
    :return: the failures that remain, by position.
    """
    failures = where.batch(messages)
    for _ in range(_TRIES):
        if not any(one.code in _OCCUPIED and late(place) for place, one in failures.items()):
            break
        time.sleep(_PAUSE)
        places = sorted(failures)
        failures = {places[n]: one for n, one in where.batch([messages[place] for place in places]).items()}
    return failures


def _missing(module: str, failure: object, otherwise: str) -> MissingError:
    return MissingError(
        f"the kernel's module {module} ({failure})",
        f"load it (modprobe {module}), boot a kernel that has it, or {otherwise}",
    )


def unfiltered(error: OSError) -> Exception:
    """Return the error, with a remedy, for a packet filter that the kernel refused."""
    if isinstance(error, LibraryMissingError):
        return missing(error)
    if error.errno in connection.UNSUPPORTED:
        return _missing(
            "nf_tables with CONFIG_NETFILTER_EGRESS, NF_TABLES_NETDEV, NFT_CONNLIMIT and NFT_FWD_NETDEV",
            error,
            "declare an interface of kind veth",
        )
    return NetspaceError(f"its packet filter can't be loaded: {error}")
