"""Published ports: ports of the host, forwarded to ports of environments. Their syntax and conflicts. Pure.

The syntax is that of docker and podman: ``[<address>:]<port>:<port inside>[/<protocol>]``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from netspace.patterns import pattern
from netspace.spec.types import PORTS, Filtered, Interface, LocalBroker

MOST = 256  # the most publications of one environment
OUTWARDS = range(32768, 61000)  # the source ports of environments' TCP and UDP connections to other hosts
_EXAMPLES = "'443:8443', '198.51.100.1:443:8443', '[2001:db8::1]:443:8443' or '53:53/udp'"
_WRITTEN = pattern(r"(?:(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?")
_OUTWARDS = f"ports {OUTWARDS[0]} to {OUTWARDS[-1]} are the source ports of connections outwards"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 (refused, not bound)


class HostPort(NamedTuple):
    """A port of the host.

    :param protocol: ``tcp`` or ``udp``.
    :param address: one address of the host; empty: all its addresses.
    """

    protocol: str
    port: int
    address: str = ""

    def __str__(self) -> str:
        return f"{_before(self.address)}{self.port}/{self.protocol}"

    def overlaps(self, other: HostPort) -> bool:
        """Return whether one packet could arrive at both ports."""
        return (
            self.protocol == other.protocol
            and self.port == other.port
            and (not self.address or not other.address or self.address == other.address)
        )


class Publication(str):
    """A published port in canonical form: a port of the host, forwarded to a port of the environment.

    Examples: ``443:8443``, ``198.51.100.1:443:8443``, ``[2001:db8::1]:443:8443``, ``53:53/udp``.
    """

    @classmethod
    def parse(cls, value: object) -> Publication:
        """Return the declared publication in canonical form.

        :raises ValueError: when *value* is malformed.
        """
        if not isinstance(value, str):
            raise ValueError(
                f"expected text in quotes, such as {_EXAMPLES} (YAML reads 53:53 as a number), got {value!r}"
            )
        match = _WRITTEN.fullmatch(value)
        if match is None:
            raise ValueError(f"expected {_EXAMPLES}, got {value!r:.100}")
        address = _address(match[1] or match[2]) if match[1] or match[2] else ""
        if bool(match[1]) != (":" in address):
            raise ValueError(f"expected {_EXAMPLES}: only an IPv6 address has brackets, got {value!r}")
        port, inside = int(match[3]), int(match[4])
        for number in (port, inside):
            if not 1 <= number <= 65535:
                raise ValueError(f"{number} is out of 1..65535")
        protocol = match[5] or "tcp"
        return cls(f"{_before(address)}{port}:{inside}{'' if protocol == 'tcp' else f'/{protocol}'}")

    def _parts(self) -> re.Match[str]:
        match = _WRITTEN.fullmatch(self)
        assert match is not None  # parse() alone makes them
        return match

    @property
    def host(self) -> HostPort:
        """The host's port."""
        found = self._parts()
        return HostPort(found[5] or "tcp", int(found[3]), found[1] or found[2] or "")

    @property
    def inside(self) -> int:
        """The environment's port."""
        return int(self._parts()[4])

    @property
    def families(self) -> tuple[str, ...]:
        """The address families whose packets the publication forwards."""
        address = self.host.address
        return ("ipv4", "ipv6") if not address else ("ipv6",) if ":" in address else ("ipv4",)


Led = tuple[Publication, Mapping[str, str]]
"""A publication and, by family, the addresses of the environment that it leads to."""


def _before(address: str) -> str:
    """Return the prefix of a port: *address* and a colon; empty without an address."""
    return "" if not address else f"[{address}]:" if ":" in address else f"{address}:"


def _address(text: str) -> str:
    """Return an address of the host in canonical form.

    :raises ValueError: *text* means all addresses of the host, or an address that other hosts can't reach.
    """
    address = ipaddress.ip_address(text)
    if str(address) in _EVERYWHERE:
        raise ValueError(f"{text}: leave it out to publish at all addresses of the host")
    if address.is_loopback:
        raise ValueError(f"{text}: other hosts can't reach a loopback address; give another address")
    mapped = address.version == 6 and address.ipv4_mapped is not None
    if address.is_multicast or address.is_link_local or mapped or text == "255.255.255.255":
        raise ValueError(f"{text}: other hosts can't reach this kind of address; give another address")
    return str(address)


class Routed(Filtered, frozen=True):
    """Base of the interface kinds to which the host routes packets, so that it can forward its own ports to them.

    :param publish: ports of the host that are forwarded to ports of the environment: ``[<address>:]<port>:<port
        inside>[/udp]``. Everybody who reaches the host can use them; they need no ``allow`` rule. Other environments of
        the host can't use them.
    """

    publish: tuple[Publication, ...] = ()


class Claimant(Protocol):
    """An interface, declared or recorded, with the names, addresses and ports that may conflict with others."""

    def claims(self) -> Iterable[tuple[str, str]]: ...

    def shares(self) -> Iterable[tuple[str, str, str]]: ...

    def listens(self) -> Iterable[tuple[str, int]]: ...


def published(spec: Claimant) -> tuple[Publication, ...]:
    """Return the published ports of an interface; empty if its kind can't publish ports."""
    led: tuple[Publication, ...] = getattr(spec, "publish", ())
    return led


def ports(interfaces: Mapping[str, Claimant]) -> Iterator[tuple[HostPort, str, str]]:
    """Yield the ports of the host that interfaces use: (port, the environment's name, the interface's key).

    The published ports come last.
    """
    for name, spec in interfaces.items():
        for key, port in spec.listens():
            yield HostPort("udp", port), name, key
    for name, spec in interfaces.items():
        for index, one in enumerate(published(spec)):
            yield one.host, name, f"publish:{index}"


def conflicts(interfaces: Mapping[str, Claimant], path: str = "netspace") -> list[tuple[str, str, str]]:
    """Return the published ports that are already used: (the environment's name, key, message).

    Other interfaces may use the port, or it may be a source port of connections from environments to other hosts.

    :param path: the declaration's path, for messages.
    """
    found = []
    taken: dict[tuple[str, int], list[tuple[HostPort, str]]] = {}
    for port, name, key in ports(interfaces):
        others = taken.setdefault((port.protocol, port.port), [])
        if key.startswith("publish:"):
            if port.port in OUTWARDS:
                found.append((name, key, f"{port}: {_OUTWARDS}; publish another"))
            other = next((entry for entry in others if entry[0].overlaps(port)), None)
            if other is not None:
                found.append((name, key, f"{port}: {other[1]} already uses {other[0]}; choose another port"))
        others.append((port, f"{path}:environments:{name}:interface:{key}"))
    return found


def listening(new: Mapping[str, Claimant], there: Mapping[str, Claimant]) -> dict[str, str]:
    """Return each interface in *new* that would listen on a port that another interface publishes.

    :param there: the existing interfaces, which publish ports.
    :return: by environment, the operator's text on the conflict.
    """
    led = [(one.host, name) for name, spec in there.items() for one in published(spec)]
    return {
        name: f"{port}: {owner} already publishes it as {host}; choose another port"
        for port, name, key in ports(new)
        if not key.startswith("publish:")
        for host, owner in led
        if host.overlaps(port)
    }


def against_broker(
    interfaces: Mapping[str, Interface], broker: LocalBroker, listen: tuple[str, int] | None, path: str
) -> list[tuple[str, str, str]]:
    """Return the published ports that the broker uses itself: (the environment's name, key, message).

    :param listen: the address and port at which other hosts reach the broker; None: other hosts don't reach it.
    """
    own = [(HostPort("tcp", getattr(broker, key), "127.0.0.1"), key) for key in PORTS]
    if listen is not None:
        own.append((HostPort("tcp", listen[1], listen[0]), "listen"))
    return [
        (name, key, f"{port}: {path}:broker:{of} already uses {other}; choose another port")
        for port, name, key in ports(interfaces)
        if key.startswith("publish:")
        for other, of in own
        if other.overlaps(port)
    ]


def misplaced(kind: str) -> str:
    """Return the message that an interface of *kind* can't have ``publish``."""
    return (
        f"the host doesn't route to an interface of kind {kind}, so it can't forward ports to it; leave publish out "
        "and let users connect to its own address (allow, direction: in), or use kind veth or tap"
    )
