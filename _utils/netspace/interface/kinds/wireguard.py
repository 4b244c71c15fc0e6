"""Kind ``wireguard``: the environment's own encrypted network, to peers anywhere.

The tunnel's packets (UDP) leave and reach this host in the host's network namespace; the environment sees only the
packets inside the tunnel. The host generates the private key, in a file that only root can read, and the key never
leaves the host. ``netspace_interface.inspect`` shows the public key, for the peers. An endpoint is an address, never a
name, so that applying a declaration makes no DNS query.

Source of the messages: the kernel's ``linux/wireguard.h``.
"""

from __future__ import annotations

import base64
import binascii
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netspace.interface import lan
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.netlink import connection, generic, reading, requests
from netspace.netlink.connection import Message, Socket, attribute
from netspace.netlink.reading import Link
from netspace.netlink.templates import Items, Value, Words
from netspace.patterns import pattern
from netspace.spec.types import Base, Cidr, Direction, Filtered, Prefixed, Way

NEEDS = "wireguard"
LINK = "wireguard"
FILTER = "inside"
FROM_HOST = True
FIXED = ()

_GET = 0
_REMOVE, _REPLACE_ALLOWED = 1, 2
# WGDEVICE_A_*, WGPEER_A_*, WGALLOWEDIP_A_*, as far as answers are read.
_INDEX, _PUBLIC, _PORT, _PEERS = 1, 4, 6, 8
_PEER_KEY, _PEER_ENDPOINT, _PEER_KEEPALIVE, _PEER_ALLOWED = 1, 4, 5, 9
_ADDRESS, _LENGTH = 2, 3
_MAX_PEERS, _MAX_ALLOWED = 1000, 1000
# An attribute holds at most 64 KiB, so peers are sent in portions.
_PORTION = 32 * 1024
# The most bytes of a peer's settings, the most bytes of one network, and the most networks in one portion of a peer.
_PEER_SIZE, _NETWORK_SIZE, _NETWORKS = 128, 48, 500
_ENDPOINT = pattern(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})")


class Peer(Base, frozen=True):
    """A peer of a wireguard interface.

    :param public_key: 44 characters, as ``wg pubkey`` or ``netspace_interface.inspect`` prints them.
    :param endpoint: the peer's address, as ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``; absent: learnt when the peer
        connects.
    :param allowed_ips: the networks from which the peer may send, and which are routed to it.
    :param keepalive: seconds between packets that keep a NAT mapping open; 0: none.
    """

    public_key: str
    endpoint: str | None = None
    allowed_ips: tuple[Cidr, ...] = ()
    keepalive: int = 0


class Wireguard(Filtered, frozen=True, kw_only=True, tag="wireguard"):
    """An encrypted tunnel.

    :param peers: a list of ``{public_key, endpoint, allowed_ips, keepalive}``: the peer's key; ``ADDRESS:PORT``
        (absent: the peer connects first); its networks, which are also routed to it; seconds between keepalive packets
        (0: none).
    :param listen_port: the UDP port; absent: any.
    :param ipv4: the interface's address in the tunnel, with the prefix: ``198.51.100.7/24``.
    :param ipv6: the same for IPv6. At least one of ``ipv4`` and ``ipv6`` must be given.
    :param routes: more networks: a list of ``{to}``, within the ``allowed_ips`` of peers.
    :param mtu: the largest packet in bytes.
    """

    peers: tuple[Peer, ...] = ()
    listen_port: int | None = None
    ipv4: Prefixed | None = None
    ipv6: Prefixed | None = None
    routes: tuple[Way, ...] = ()
    mtu: int = 1420

    def problems(self) -> Iterable[tuple[str, str]]:
        if self.listen_port is not None and not 1 <= self.listen_port <= 65535:
            yield "listen_port", f"{self.listen_port} is out of 1..65535"
        if len(self.peers) > _MAX_PEERS:
            yield "peers", f"more than {_MAX_PEERS}"
        keys: set[str] = set()
        allowed: dict[str, int] = {}
        for index, peer in enumerate(self.peers):
            where = f"peers:{index}"
            if _key(peer.public_key) is None:
                yield f"{where}:public_key", "expected a key of 32 bytes in base64 (44 characters)"
            if peer.public_key in keys:
                yield f"{where}:public_key", "another peer has this key already"
            keys.add(peer.public_key)
            if peer.endpoint is not None and endpoint(peer.endpoint) is None:
                yield f"{where}:endpoint", f"{peer.endpoint!r}: expected ADDRESS:PORT or [IPV6]:PORT; no names"
            if not 0 <= peer.keepalive <= 65535:
                yield f"{where}:keepalive", f"{peer.keepalive} is out of 0..65535"
            if len(peer.allowed_ips) > _MAX_ALLOWED:
                yield f"{where}:allowed_ips", f"more than {_MAX_ALLOWED}"
            for network in peer.allowed_ips:
                if allowed.setdefault(network, index) != index:
                    yield f"{where}:allowed_ips", f"{network} is allowed to peer {allowed[network]} already"
        for index, way in enumerate(self.routes):
            if way.via is not None:
                yield f"routes:{index}:via", "means nothing here: a tunnel has no neighbours"
        yield from lan.address_problems(self)

    def networks(self, direction: Direction) -> tuple[Cidr, ...]:
        """Return the networks in the peers' ``allowed_ips``.

        The tunnel drops all packets to and from other addresses.
        """
        return tuple(network for peer in self.peers for network in peer.allowed_ips)

    def families(self) -> frozenset[str]:
        return lan.families(self)

    def claims(self) -> Iterable[tuple[str, str]]:
        if self.listen_port is not None:
            yield "listen_port", f"wireguard at UDP port {self.listen_port}"

    def shares(self) -> Iterable[tuple[str, str, str]]:
        if self.listen_port is not None:
            yield "listen_port", f"UDP port {self.listen_port}", "wireguard's"

    def listens(self) -> Iterable[tuple[str, int]]:
        if self.listen_port is not None:
            yield "listen_port", self.listen_port


def _key(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == 32 and base64.b64encode(raw).decode() == text else None


def endpoint(text: str) -> tuple[str, int] | None:
    """Return address and port of an endpoint; None if *text* is no endpoint."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        return None
    try:
        address = ipaddress.IPv6Address(match[1]) if match[1] else ipaddress.IPv4Address(match[2])
    except ValueError:
        return None
    return str(address), int(match[3])


def ends(spec: Wireguard, place: EndpointContext) -> Endpoints:
    """Return the desired inner end. There is no end on the host."""
    details: dict[str, Any] = {
        "peers": {
            peer.public_key: {
                "allowed_ips": sorted({str(network) for network in peer.allowed_ips}),
                "keepalive": peer.keepalive,
                **({} if peer.endpoint is None else {"endpoint": peer.endpoint}),
            }
            for peer in spec.peers
        }
    }
    if spec.listen_port is not None:
        details["listen_port"] = spec.listen_port
    if place.public_key:
        details["public_key"] = place.public_key
    allowed = [str(network) for peer in spec.peers for network in peer.allowed_ips]
    end = lan.inside(spec, place, LINK, details, mac="", neighbours=False, more=allowed)
    return Endpoints(inside=end, made_as=place.host_name)


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink message that creates the network device in the namespace *far*.

    The tunnel's packets stay in the host's namespace.
    """
    end = wanted.inside
    assert end is not None
    return [requests.add_link(LINK, wanted.made_as, mtu=end.mtu, arp=False, namespace=far)]


# -- the key ---------------------------------------------------------------------------
def secret(path: str) -> str:
    """Create a private key at *path* unless there is one; return the public key."""
    from pathlib import Path

    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from netspace import files
    from netspace.errors import StateError

    try:
        private = X25519PrivateKey.from_private_bytes(Path(path).read_bytes())
    except FileNotFoundError:
        private = X25519PrivateKey.generate()
        raw = private.private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        files.write(Path(path), raw, mode=0o600)
    except ValueError as err:
        raise StateError(f"{path} is not a private key ({err}); put back the one that peers know") from err
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(public).decode()


# -- speaking to the kernel ---------------------------------------------------------------
def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink messages that set key, port and peers. An unchanged peer keeps its session."""
    if now is not None and now.details == wanted.details:
        return []
    family = generic.family("wireguard")
    if family is None:
        raise OSError(errno.EOPNOTSUPP, "the kernel can't configure wireguard; load its module (modprobe wireguard)")
    with open(wanted.secret, "rb") as file:
        private = file.read(33)
    if len(private) != 32:
        raise OSError(errno.EINVAL, f"{wanted.secret} is not a private key; put back the one that peers know")
    had = {} if now is None else now.details.get("peers", {})
    return [
        requests.set_wireguard(family, index, words)
        for words in configuration(private, wanted.details.get("listen_port"), wanted.details["peers"], had)
    ]


def configuration(
    private: bytes,
    port: int | None,
    peers: Mapping[str, Mapping[str, Any]],
    had: Mapping[str, Mapping[str, Any]],
) -> list[Words]:
    """Return the attributes of the netlink requests that configure a device.

    :param had: the device's present peers.
    """
    first: list[tuple[str, Value]] = [("WGDEVICE_A_PRIVATE_KEY", base64.b64encode(private).decode())]
    if port is not None:
        first.append(("WGDEVICE_A_LISTEN_PORT", port))
    entries = [(_gone(key), 0) for key in had if key not in peers]
    for key, peer in peers.items():
        if had.get(key) != peer:
            entries += _peer(key, peer)
    portions: list[list[Words]] = [[]]
    room = _PORTION
    for entry, networks in entries:
        size = _PEER_SIZE + networks * _NETWORK_SIZE
        if size > room:
            portions.append([])
            room = _PORTION
        portions[-1].append(entry)
        room -= size
    return [tuple(first), *((("WGDEVICE_A_PEERS", Items(tuple(portion))),) for portion in portions if portion)]


def _gone(key: str) -> Words:
    return (("WGPEER_A_PUBLIC_KEY", key), ("WGPEER_A_FLAGS", _REMOVE))


def _peer(key: str, peer: Mapping[str, Any]) -> list[tuple[Words, int]]:
    """Return a peer's attributes in portions of a limited size, each with the number of networks in it.

    Each portion has some of the peer's networks. The first portion also has the peer's settings.
    """
    name: Words = (("WGPEER_A_PUBLIC_KEY", key),)
    settings: list[tuple[str, Value]] = [("WGPEER_A_FLAGS", _REPLACE_ALLOWED)]
    if "endpoint" in peer:
        parsed = endpoint(peer["endpoint"])
        assert parsed is not None  # the declaration was checked
        settings.append(("WGPEER_A_ENDPOINT", (("addr", parsed[0]), ("port", parsed[1]))))
    settings.append(("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer["keepalive"]))
    allowed = [_allowed(network) for network in peer["allowed_ips"]]
    found: list[tuple[Words, int]] = []
    for start in range(0, len(allowed) or 1, _NETWORKS):
        networks = tuple(allowed[start : start + _NETWORKS])
        said = name if start else (*name, *settings)
        found.append(((*said, ("WGPEER_A_ALLOWEDIPS", Items(networks))), len(networks)))
    return found


def _allowed(network: str) -> Words:
    parsed = ipaddress.ip_network(network)
    return (
        ("WGALLOWEDIP_A_FAMILY", socket.AF_INET6 if parsed.version == 6 else socket.AF_INET),
        ("WGALLOWEDIP_A_IPADDR", parsed.network_address.packed),
        ("WGALLOWEDIP_A_CIDR_MASK", parsed.prefixlen),
    )


def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    """Return those observed settings of the device that *like* sets.

    A random port, and the address from which a peer connected, are no drift and are left out.
    """
    family = generic.family("wireguard")
    if family is None or link.kind != LINK:
        return {}
    with Socket(connection.NETLINK_GENERIC) as device_socket:
        request = generic.ask(family, _GET, attribute(_INDEX, struct.pack("=I", link.index)))
        device = parse_device(device_socket.dump(request))
    for key in ("listen_port", "public_key"):
        if key not in like.details:
            del device[key]
    for key, peer in device["peers"].items():
        due = like.details.get("peers", {}).get(key, {})
        if "endpoint" not in due:
            peer.pop("endpoint", None)
        elif "endpoint" in peer:
            peer["endpoint"] = due["endpoint"]
    return device


def parse_device(payloads: Sequence[bytes]) -> dict[str, Any]:
    """Return ``{"listen_port", "public_key", "peers"}`` from the kernel's dump of a device; never the private key.

    :raises NetlinkError: the dump is malformed.
    """
    found: dict[str, Any] = {"listen_port": 0, "public_key": "", "peers": {}}
    for payload in payloads:
        device = _parse(payload)
        for key, value in device.items():
            if key != "peers":
                found[key] = value
        for key, peer in device["peers"].items():
            # The kernel splits a long peer: its next message continues it.
            known = found["peers"].setdefault(key, {"allowed_ips": [], "keepalive": 0})
            known["allowed_ips"] = sorted({*known["allowed_ips"], *peer.pop("allowed_ips")})
            known.update(peer)
    return found


@reading.bounded
def _parse(payload: bytes | memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {"peers": {}}
    for type_, value in reading.attributes(payload, 4):
        if type_ == _PORT:
            found["listen_port"] = reading.number(value)
        elif type_ == _PUBLIC:
            found["public_key"] = base64.b64encode(value).decode()
        elif type_ == _PEERS:
            for _, entry in reading.attributes(value):
                key, peer = _parse_peer(entry)
                known = found["peers"].setdefault(key, {"allowed_ips": []})
                known["allowed_ips"] += peer.pop("allowed_ips")
                known.update(peer)
    return found


def _parse_peer(entry: memoryview) -> tuple[str, dict[str, Any]]:
    values = dict(reading.attributes(entry))
    if len(values[_PEER_KEY]) != 32:
        raise ValueError("a peer's key doesn't have 32 bytes")
    peer: dict[str, Any] = {"allowed_ips": []}
    if _PEER_KEEPALIVE in values:
        peer["keepalive"] = reading.number(values[_PEER_KEEPALIVE])
    if _PEER_ENDPOINT in values:
        raw = bytes(values[_PEER_ENDPOINT])
        (family,), (port,) = struct.unpack_from("=H", raw), struct.unpack_from("!H", raw, 2)
        if family == socket.AF_INET6:
            peer["endpoint"] = f"[{socket.inet_ntop(family, raw[8:24])}]:{port}"
        else:
            peer["endpoint"] = f"{socket.inet_ntop(family, raw[4:8])}:{port}"
    for _, below in reading.attributes(values.get(_PEER_ALLOWED, memoryview(b""))):
        one = dict(reading.attributes(below))
        network = ipaddress.ip_network((bytes(one[_ADDRESS]), reading.number(one[_LENGTH])))
        peer["allowed_ips"].append(str(network))
    return base64.b64encode(values[_PEER_KEY]).decode(), peer
