"""Kind ``tap``: a network stack inside the environment, without any capability, behind the same packet filter."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.interfaces.interface_bench import WIRE, WORLD, Bench, mac_of, run, within
from support.interfaces.packets import (
    ARP,
    BROADCAST,
    ICMP,
    ICMP6,
    UDP,
    Wire,
    checksum,
    frame,
    ip,
    kind_of,
    mac,
    packed,
    tags,
    udp,
    upper,
)
from support.waiting import PATIENCE, until

from netspace.environment.runtimes import xen
from netspace.interface.kinds import tap as kind
from netspace.layout import DOMAIN

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_processor")]
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])

OWNER = 1900000000
PORT = 5353
MARK = b"the honest last one"
SENDS = [
    {"direction": "out", "cidr": cidr, "protocol": protocol} for cidr in WORLD.values() for protocol in ("udp", "icmp")
]

# What an environment's program does: attach as its own user, who has no capability.
ATTACH = """
import fcntl, os, socket, struct, sys
os.setgroups([]); os.setresgid({owner}, {owner}, {owner}); os.setresuid({owner}, {owner}, {owner})
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"{name}", 0x1002))
with socket.socket(fileno={channel}) as channel:
    socket.send_fds(channel, [b"x"], [device])
"""


def tap(*allow: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "tap", "allow": list(allow), **more}


def attach(bench: Bench, name: str, owner: int, link: str = "tap0") -> int:
    """Open the device in the namespace as user *owner*; return the device's descriptor."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        text = ATTACH.format(owner=owner, name=link, channel=theirs.fileno())
        ended = within(
            bench.path(name),
            lambda: subprocess.run(
                [sys.executable, "-I", "-c", text],
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                check=False,
            ),
        )
        if ended.returncode:
            raise OSError(ended.stderr.strip().splitlines()[-1])
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return descriptors[0]


class Guest:
    """A small network stack behind the tap device."""

    def __init__(self, bench: Bench, name: str = "a") -> None:
        self.device = attach(bench, name, OWNER)
        os.set_blocking(self.device, False)
        self.mac = mac_of(bench.path(name), "eth0")
        self.gateway_mac = ""
        self.own = {family: bench.address(name, family) for family in WIRE}
        self.gateway = {family: bench.gateway(name, family) for family in WIRE}

    def write(self, data: bytes) -> None:
        os.write(self.device, data)

    def read(self) -> list[bytes]:
        import select

        found = []
        while select.select([self.device], [], [], 0.2)[0]:
            found.append(os.read(self.device, 1 << 16))
        return found

    def awaited(self, wanted: Callable[[bytes], object]) -> list[bytes]:
        """Wait for at least one wanted frame; return all wanted frames that arrived."""
        found: list[bytes] = []

        def came() -> list[bytes]:
            found.extend(one for one in self.read() if wanted(one))
            return found

        until(came, "no such frame came")
        return found

    def send(self, packet: bytes, *, source: str = "", target: str = "") -> None:
        self.write(frame(target or self.gateway_mac, source or self.mac, kind_of(packet), packet))

    def ask(self, family: str, about: str = "", source: str = "", **claimed: str) -> str:
        """Send an ARP or neighbour discovery question for *about* (default: the gateway).

        Return the MAC address; empty: no answer.
        """
        about, source = about or self.gateway[family], source or self.own[family]
        own_mac = claimed.get("mac", self.mac)
        if family == "ipv4":
            body = bytes.fromhex("0001080006040001") + mac(own_mac) + packed(source) + bytes(6) + packed(about)
            self.write(frame(BROADCAST, self.mac, ARP, body))
            for one in self.read():
                # Whatever came late is about what was asked before.
                if one[12:14] == struct.pack(">H", ARP) and one[20:22] == b"\0\2" and one[28:32] == packed(about):
                    assert one[:6] == one[32:38] == mac(self.mac) and one[38:42] == packed(source)
                    return one[22:28].hex(":")
            return ""
        body = bytes([135, 0, 0, 0, 0, 0, 0, 0]) + packed(about) + b"\1\1" + mac(own_mac)
        group = "ff02::1:ff" + packed(about)[13:].hex()[:2] + ":" + packed(about)[14:].hex()
        self.write(
            frame(BROADCAST, self.mac, 0x86DD, ip(source, group, ICMP6, upper(source, group, ICMP6, body, 2), hops=255))
        )
        for one in self.read():
            if one[20] == ICMP6 and one[54] == 136:
                assert one[62:78] == packed(about) and one[21] == 255
                assert checksum(one[22:54] + struct.pack(">II", len(one) - 54, ICMP6) + one[54:]) == 0, "its checksum"
                return one[80:86].hex(":")
        return ""

    def settle(self) -> None:
        """Find the gateway. Repeat the question, since a link that has just come up may lose packets."""

        def found() -> str:
            self.gateway_mac = self.ask("ipv4")
            return self.gateway_mac

        until(found, "the gateway answers")


class DomainGuest(Guest):
    """A small network stack behind the device of a domain. A veth pair stands in for the device and its other end."""

    def __init__(self, bench: Bench, name: str = "a") -> None:
        script = f"""
            {re.search(r"^lead[(][)].*?^[}]$", xen._WATCH, re.DOTALL | re.MULTILINE)[0]}
            ip link add name vif7.0 mtu 1500 type veth peer name front &&
            lead vif7.0 xen1 && lead xen1 vif7.0 && ip link set vif7.0 arp off up && ip link set front arp off up
        """  # type: ignore[index]

        def joined() -> socket.socket:
            subprocess.run(["/bin/sh", "-ec", script], check=True)
            without_offload("vif7.0")
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            made.bind(("front", 0))
            return made

        self.socket = within(bench.path(name), joined)
        self.device = self.socket.detach()
        os.set_blocking(self.device, False)
        self.mac = mac_of(bench.path(name), "eth0")
        self.gateway_mac = ""
        self.own = {family: bench.address(name, family) for family in WIRE}
        self.gateway = {family: bench.gateway(name, family) for family in WIRE}


def without_offload(link: str) -> None:
    """Let the kernel compute checksums of frames that leave by *link*, as for a guest that can't (ethtool)."""
    value = ctypes.create_string_buffer(struct.pack("II", 0x17, 0))  # ETHTOOL_STXCSUM: off
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, 0x8946, struct.pack("16sQ16x", link.encode(), ctypes.addressof(value)))


@pytest.fixture(params=["user", "domain"])
def guest(bench: Bench, outside: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    bench.make(a=tap(*SENDS), b=tap(*SENDS))
    bench.own(a=OWNER if request.param == "user" else DOMAIN)
    made = Guest(bench) if request.param == "user" else DomainGuest(bench)
    yield made
    os.close(made.device)


@families
def test_the_gateway_is_found_and_nobody_else(guest: Guest, bench: Bench, family: str) -> None:
    until(lambda: guest.ask(family) == kind.gateway_mac(guest.mac), "the gateway answers")
    assert kind.gateway_mac(guest.mac) != guest.mac
    assert guest.ask(family, about=bench.address("b", family)) == ""
    assert guest.ask(family, source=bench.address("b", family)) == ""
    if family == "ipv4":
        assert guest.ask(family, mac="02:00:00:00:00:99") == ""


@families
def test_a_datagram_and_its_answer(guest: Guest, bench: Bench, outside: Path, family: str) -> None:
    guest.settle()
    own, far = guest.own[family], WIRE[family][1]
    kind_ = socket.AF_INET6 if family == "ipv6" else socket.AF_INET

    def bound() -> socket.socket:
        made = socket.socket(kind_, socket.SOCK_DGRAM)
        made.bind((far, PORT))
        made.settimeout(PATIENCE)
        return made

    with within(outside, bound) as peer:
        guest.send(ip(own, far, UDP, udp(own, far, PORT, b"asked")))
        data, address = peer.recvfrom(100)
        assert (data, address[0]) == (b"asked", WIRE[family][0]), "masqueraded like any other"
        peer.sendto(b"answered", address)
        (answer,) = guest.awaited(lambda one: b"answered" in one)
    assert answer[:6] == mac(guest.mac) and answer[6:12] == mac(guest.gateway_mac)
    head = 14 + (40 if family == "ipv6" else 20)
    pseudo = answer[22:54] if family == "ipv6" else answer[26:34]
    assert checksum(pseudo + struct.pack(">HH", len(answer) - head, UDP) + answer[head:]) == 0


@families
def test_a_published_port_leads_to_the_guest(guest: Guest, bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=tap(*SENDS, publish=[f"53:{PORT}/udp"]))
    guest.settle()
    own, (near, far) = guest.own[family], WIRE[family]
    kind_ = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with within(outside, lambda: socket.socket(kind_, socket.SOCK_DGRAM)) as peer:
        peer.settimeout(PATIENCE)
        peer.sendto(b"asked", (near, 53))
        (asked,) = guest.awaited(lambda one: b"asked" in one)
        head = 14 + (40 if family == "ipv6" else 20)
        from_port, port = struct.unpack_from(">HH", asked, head)
        assert port == PORT
        guest.send(ip(own, far, UDP, udp(own, far, from_port, b"answered", PORT)))
        data, address = peer.recvfrom(100)
        assert (data, address[:2]) == (b"answered", (near, 53))


@families
def test_the_host_pings_the_guest_where_that_is_allowed(bench: Bench, outside: Path, family: str) -> None:
    host = str(getattr(bench.desired().network, family).network[1])
    bench.make(a=tap({"direction": "in", "cidr": host, "protocol": "icmp"}))
    bench.own(a=OWNER)
    guest = Guest(bench)
    try:
        guest.settle()
        icmp, request, answer = {"ipv4": (ICMP, 8, 0), "ipv6": (ICMP6, 128, 129)}[family]
        kind_ = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        with socket.socket(kind_, socket.SOCK_RAW, icmp) as raw:
            body = struct.pack(">BBHHH", request, 0, 0, 7, 1) + b"ping"
            if family == "ipv4":
                body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
            raw.sendto(body, (guest.own[family], 0))
            head = 14 + (40 if family == "ipv6" else 20)
            (asked,) = guest.awaited(lambda one: one[head : head + 1] == bytes([request]))
            reply = bytes([answer, 0, 0, 0]) + asked[head + 4 :]
            own = guest.own[family]
            reply = (
                upper(own, host, ICMP6, reply, 2)
                if family == "ipv6"
                else reply[:2] + struct.pack(">H", checksum(reply)) + reply[4:]
            )
            guest.send(ip(own, host, icmp, reply))
            raw.settimeout(PATIENCE)
            while True:
                got = raw.recv(100)
                got = got if family == "ipv6" else got[20:]
                if got[0] == answer:
                    break
            assert got[8:] == b"ping"
    finally:
        os.close(guest.device)


@families
def test_forged_and_unwanted_frames_are_dropped(guest: Guest, bench: Bench, outside: Path, family: str) -> None:
    guest.settle()
    far, own = WIRE[family][1], guest.own[family]
    known = []

    def packet(source: str, target: str = far, port: int = PORT) -> bytes:
        known.append(b"forged-%03d-" % len(known))
        return ip(source, target, UDP, udp(source, target, port, known[-1]))

    with Wire(outside, "wire") as arriving, Wire(bench.path("b"), "eth0") as neighbour:
        guest.send(packet(bench.address("b", family)))
        guest.send(packet(guest.gateway[family]))
        guest.send(packet(WIRE[family][0]))
        guest.send(packet(own), source="02:00:00:00:00:99")
        guest.send(packet(own), target=BROADCAST)
        guest.send(packet(own), target=guest.mac)
        guest.send(packet(own, bench.address("b", family)))
        guest.write(frame(guest.gateway_mac, guest.mac, 0x88B5, packet(own)))
        inner = packet(own)
        guest.write(frame(guest.gateway_mac, guest.mac, 0x8100, b"\0\7" + struct.pack(">H", kind_of(inner)) + inner))
        own4 = guest.own["ipv4"]
        guest.send(ip(own4, WIRE["ipv4"][1], UDP, udp(own4, WIRE["ipv4"][1], PORT, MARK)))
        seen = [*arriving.until(MARK), *neighbour.received()]
    assert tags(seen, known) == set()


def test_the_host_learns_no_neighbour_of_it(guest: Guest, bench: Bench) -> None:
    guest.settle()
    until(lambda: guest.ask("ipv6"), "the gateway answers")
    end = bench.host_end("a")
    assert [line for line in run(f"ip neigh show dev {end} nud all").splitlines() if "NOARP" not in line] == []


def test_it_opens_to_its_owner_alone_who_can_make_no_other(bench: Bench) -> None:
    bench.make(a=tap(), b=tap())
    with pytest.raises(OSError, match="not permitted"):
        attach(bench, "a", OWNER)
    bench.own(a=OWNER, b=OWNER + 65536)
    os.close(attach(bench, "a", OWNER))
    for owner, link in ((OWNER + 65536, "tap0"), (OWNER, "tap1"), (OWNER, "eth0"), (OWNER, "tap%d")):
        with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
            attach(bench, "a", owner, link)
    links = json.loads(run(f"ip -n {bench.path('a').name} -j link"))
    assert [link["ifname"] for link in links] == ["lo", "eth0", "tap0"]


def test_a_domain_takes_the_place_of_a_user_and_gives_it_back(bench: Bench) -> None:
    desired = bench.make(a=tap(*SENDS))

    def there() -> list[str]:
        return [link["ifname"] for link in json.loads(run(f"ip -n {bench.path('a').name} -j link"))]

    for owner, links in ((OWNER, ["eth0", "tap0"]), (DOMAIN, ["eth0", "xen0", "xen1"])) * 2:
        bench.own(a=owner)
        assert sorted(there()) == sorted(["lo", *links])
        assert not bench.plan(desired).steps
    changed = bench.desired(a=tap(*SENDS, mtu=1400))
    bench.apply(changed)
    assert not bench.plan(changed).steps
    assert "mtu 1400" in run(f"ip -n {bench.path('a').name} link show xen1")


@pytest.mark.parametrize(
    "command",
    [
        "ip link del xen1",
        "ip link set xen0 down",
        "ip link set xen1 down",
        "ip link set xen1 mtu 1300",
        "ip tuntap add tap0 mode tap",
        "nft delete chain netdev netspace sent",
    ],
)
def test_drift_of_a_domains_links_is_repaired(bench: Bench, command: str) -> None:
    desired = bench.make(a=tap(*SENDS))
    bench.own(a=DOMAIN)
    run(f"ip netns exec {bench.path('a').name} {command}")
    assert {step.name for step in bench.plan(desired).steps} == {"a"}
    bench.apply(desired)
    assert not bench.plan(desired).steps
    guest = DomainGuest(bench)
    try:
        guest.settle()
    finally:
        os.close(guest.device)


def test_second_apply_changes_nothing_and_ownership_stays(bench: Bench) -> None:
    desired = bench.make(a=tap(*SENDS))
    bench.own(a=OWNER)
    assert not bench.plan(desired).steps
    changed = bench.desired(a=tap())
    bench.apply(changed)
    assert not bench.plan(changed).steps
    os.close(attach(bench, "a", OWNER))


@pytest.mark.parametrize(
    "command",
    [
        "ip link del tap0",
        "ip link set tap0 down",
        "ip link set tap0 mtu 1300",
        "ip tuntap del dev tap0 mode tap",
        "nft flush ruleset",
        "nft delete chain netdev netspace sent",
        "ip link del eth0",
    ],
)
def test_drift_is_seen_and_repaired(bench: Bench, outside: Path, command: str) -> None:
    desired = bench.make(a=tap(*SENDS))
    bench.own(a=OWNER)
    run(f"ip netns exec {bench.path('a').name} {command}")
    assert {step.name for step in bench.plan(desired).steps} == {"a"}
    bench.apply(desired)
    assert not bench.plan(desired).steps
    guest = Guest(bench)
    try:
        guest.settle()
        own, far = guest.own["ipv4"], WIRE["ipv4"][1]
        with Wire(outside, "wire") as arriving:
            guest.send(ip(own, far, UDP, udp(own, far, PORT, MARK)))
            arriving.until(MARK)
    finally:
        os.close(guest.device)


def test_a_guest_that_removes_its_device_gets_it_back(bench: Bench) -> None:
    desired = bench.make(a=tap())
    bench.own(a=OWNER)
    device = attach(bench, "a", OWNER)
    fcntl.ioctl(device, 0x400454CB, 0)  # TUNSETPERSIST
    os.close(device)
    assert [link["ifname"] for link in json.loads(run(f"ip -n {bench.path('a').name} -j link"))] == ["lo", "eth0"]
    bench.apply(desired)
    os.close(attach(bench, "a", OWNER))


def test_a_device_in_use_is_said(bench: Bench) -> None:
    bench.make(a=tap())
    bench.own(a=OWNER)
    device = attach(bench, "a", OWNER)
    try:
        errors = bench.kind.own({"a": OWNER + 1})
        assert "stop the environment" in errors["a"]
    finally:
        os.close(device)
    assert not bench.kind.own({"a": OWNER + 1})
