"""Checks, from inside each environment's network namespace, that its programs can reach the forwarder. Changes nothing.

Even if the forwarder runs and serves an environment, its programs may not reach the forwarder: the network namespace
may have been replaced, its loopback may be down, or another program may use the port.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Collection

from netspace import threads
from netspace.layout import Layout
from netspace.link.forwarder import ports, process

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1  # netdevice(7)


def closed(layout: Layout, environments: Collection[str], silent: str) -> dict[str, str]:
    """Return the environments that can't reach the broker, each with the reason, from all checks of this module.

    :param silent: why the forwarder forwards nothing (``haproxy.silent``); empty if it works.
    """
    if silent:
        return dict.fromkeys(environments, f"the forwarder doesn't do its work ({silent}); apply again")
    left = left_out(layout, environments)
    return {
        **{name: f"it is left out by the forwarder: {why}" for name, why in left.items()},
        **shut(layout, environments),
    }


def left_out(layout: Layout, environments: Collection[str]) -> dict[str, str]:
    """Return which of *environments* the forwarder doesn't serve, each with the reason and the remedy."""
    left = set(environments).difference(process.served(process.current(layout)))
    there = process.namespaces(layout, left)
    why = {
        True: "a program in it has taken its port for the broker; end that program",
        False: "it has no network namespace",
    }
    return {name: f"{why[name in there]}; apply again" for name in sorted(left)}


def shut(layout: Layout, environments: Collection[str]) -> dict[str, str]:
    """Return those of the served *environments* that can't reach the forwarder, with reasons and remedies.

    The check makes no connection, because a connection would count towards the environment's limits.
    """
    entries = {name: at for name, at in process.entries(process.current(layout)).items() if name in environments}
    there = process.namespaces(layout, entries)
    found: dict[str, str] = {}

    def look() -> None:
        for name, (inode, port) in entries.items():
            if there.get(name) != inode:
                found[name] = "its network namespace is not the one that the forwarder serves; apply again"
                continue
            try:
                threads.enter_network(layout.netns(name))
            except OSError as err:
                found[name] = f"its network namespace can't be entered: {err.strerror}; apply again"
                continue
            if not _loopback_is_up():
                found[name] = f"its loopback is down; ip -n {layout.netns_name(name)} link set lo up"
            elif not ports.root_listens(port):
                found[name] = f"no process of the host listens at its {ports.LOOPBACK}:{port}; restart the forwarder"

    threads.in_thread(look)
    return found


def _loopback_is_up() -> bool:
    """Return whether ``lo`` is up in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
    return bool(struct.unpack_from("h", answer, 16)[0] & _IFF_UP)
