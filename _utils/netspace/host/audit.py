"""Audit of an environment's isolation: a temporary twin of the environment attacks a second twin, and the host.

This module makes the two twins, and gives them interfaces of the original's kind, with the same rules and their own
addresses. A twin never gets an interface on a network beyond this host. The audit holds the instance's lock, so nothing
else changes meanwhile. The next run removes the twins of a killed audit.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.host.host import Host
from netspace.spec import parse
from netspace.spec.publish import Routed
from netspace.spec.types import Allow, Declaration, Environment, Interface, LocalBroker, Network

if TYPE_CHECKING:
    from netspace.environment.record import Record

Rows = list[dict[str, str]]
OUTSIDE = {"skip": "an audit sends nothing beyond this host"}


@dataclass(frozen=True)
class Twins:
    """Two twins of an environment, prepared but not started: noted on disk, and joined to a network.

    :param original: the environment's record.
    :param names: the names of the twins. The first one attacks.
    :param interface: the original's interface.
    :param problem: why the twins' interfaces differ from the original's; empty if they don't.
    """

    original: Record
    names: tuple[str, str]
    interface: Interface | None
    problem: str


@contextlib.contextmanager
def twins(host: Host, name: str, network: Network) -> Iterator[Twins]:
    """Make two twins of an environment under the instance's lock; yield them, and remove them afterwards.

    :param network: the ranges from which the twins get addresses.
    :raises NetspaceError: the environment doesn't exist, or must not run now.
    """
    from netspace.environment.audit import twin
    from netspace.interface import record as records

    with files.locked(host.layout.lock):
        host.sweep()
        record = host.operations.known([name])[name]
        if reason := host.withheld({name: record.spec}).get(name):
            raise NetspaceError(f"environment {name} must not run now: {reason}")
        names = twin.names()
        twin.note(host.layout, names)
        try:
            known = records.read_one(host.layout, name)
            interface = None if known is None else known.interface
            yield Twins(record, names, interface, _connect(host, names, interface, network))
        finally:
            host.sweep()


def audit(host: Host, name: str, network: Network) -> Rows:
    """Let one twin of an environment try to break out, to the host and to the second twin.

    :return: a row per attempt: ``name``, ``group``, ``outcome``, ``detail``.
    :raises NetspaceError: the environment doesn't exist, or its twins can't run; see :func:`twins`.
    """
    from netspace.environment.audit import twin

    with twins(host, name, network) as there, _listening(host, there.names[0], there.interface) as aim:
        target = {**aim, "outside": OUTSIDE}
        if there.problem:
            target["peer"] = {"addresses": {"skip": there.problem}}
        else:
            addresses = host.interfaces.list()[there.names[1]]["addresses"]
            target["peer"] = {"addresses": list(addresses.values()) or {"skip": "it has no interface"}}
        rows: Rows = twin.attack(host.environments.making, there.original, there.names, target)
        return rows


def _connect(host: Host, twins: tuple[str, str], interface: Interface | None, network: Network) -> str:
    """Give both twins a network namespace and an interface like the original's.

    :return: why their interface differs from the original's; empty if it doesn't.
    """
    from netspace.interface import kinds

    problem = ""
    if interface is not None:
        kind = kinds.name(interface)
        if kinds.of(interface).FILTER == "inside":
            # On an interface of these kinds, a twin would have another machine's address or the original's own key.
            problem = f"a twin has no interface of kind {kind}: it would be seen on a network beyond this host"
        elif error := _made(host, _declared(twins, _anonymous(interface), network)):
            problem = f"a twin can't have an interface of kind {kind}: {error}"
        else:
            return ""
    if error := _made(host, _declared(twins, parse.interface({"kind": "none"}), network)):
        raise NetspaceError(f"a twin can't have a network namespace: {error}")
    return problem


def _made(host: Host, declared: Declaration) -> str:
    result = host.connect(declared)
    problems = [failure.error for failure in result.failures] + [refusal.message for refusal in result.plan.refusals]
    return "; ".join(sorted(set(problems)))


def _declared(twins: tuple[str, str], interface: Interface, network: Network) -> Declaration:
    spec = Environment(image="", interface=interface)
    return Declaration(network=network, environments=dict.fromkeys(twins, spec))


def _anonymous(interface: Interface) -> Interface:
    """Return the interface without declared addresses and published ports, which two environments can't share."""
    own = [key for key in ("ipv4", "ipv6") if getattr(interface, key, None) is not None]
    changed: Interface = msgspec.structs.replace(interface, **dict.fromkeys(own))
    return msgspec.structs.replace(changed, publish=()) if isinstance(changed, Routed) else changed


@contextlib.contextmanager
def _listening(host: Host, name: str, interface: Interface | None) -> Iterator[dict[str, Any]]:
    """Listen on the host's end of the attacking twin's interface; yield the addresses and ports for the twin to try."""
    gateways: Mapping[str, str] = host.interfaces.list()[name]["gateways"]
    port = 0
    with contextlib.ExitStack() as stack:
        open_ends = []
        for address in gateways.values():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            tcp = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            try:
                tcp.bind((address, port))
                tcp.listen()
            except OSError:
                continue  # the host no longer has this address
            port = tcp.getsockname()[1]
            open_ends.append(address)
        allow = getattr(interface, "allow", ())
        aim = [address for address in open_ends if not _allowed(address, port, allow)]
        why = "its rules let it reach the host" if open_ends else "the host has no end of its interface"
        account = host.links.recorded_broker()
        local = account if isinstance(account, LocalBroker) else LocalBroker()
        ports = [local.port, local.management_port, local.distribution_port]
        yield {"host": {"addresses": aim or {"skip": why}, "port": port, "broker_ports": ports}}


def _allowed(address: str, port: int, allow: tuple[Allow, ...]) -> bool:
    """Return whether a rule lets the environment reach this address and port of the host."""
    for rule in allow:
        first, _, last = str(rule.port or "0-65535").partition("-")
        if rule.name is not None or rule.cidr is None:
            continue  # a name never leads to the host
        network = rule.cidr.network
        inside = ipaddress.ip_address(address) in network
        if rule.direction == "out" and rule.protocol != "icmp" and inside and int(first) <= port <= int(last or first):
            return True
    return False
