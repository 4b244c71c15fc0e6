"""Messages to the kernel equal those of iproute2 6.15 and wg 1.0; the kernel's answers are read within bounds.

The bytes were captured by strace on Linux 6.12 (x86-64), from the commands beside them.
"""

from __future__ import annotations

import base64
import contextlib
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace.interface import endpoints, kinds
from netspace.interface.endpoints import Endpoint, EndpointContext
from netspace.interface.kinds import wireguard
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message, Socket
from netspace.netlink.reading import Link, NetlinkError
from netspace.spec import parse

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="captured on a little-endian machine")

# A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MAC = "02:00:00:00:00:01"
KEYS = ("ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=", "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=")
LAN = {"ipv4": "198.18.6.7/24", "parent": "p"}
PEERS = [
    {
        "public_key": KEYS[0],
        "endpoint": "198.18.5.2:51820",
        "keepalive": 25,
        "allowed_ips": ["198.18.6.2", "fd00:198:6::/64"],
    },
    {"public_key": KEYS[1], "endpoint": "[fd00::2]:1234", "allowed_ips": ["198.18.9.0/24"]},
]

# What is declared, what ip(8) is asked for the same (link "p" has the index 3), and what it says.
MADE = {
    "ip link add link p name t0 mtu 1400 address 02:00:00:00:00:01 type macvlan mode private": (
        {"kind": "macvlan", **LAN, "mtu": 1400},
        (
            "600000001000050681e2056b000000000000000000000000000000000000000008000400780500000a00010002000000000100000800"
            "05000300000007000300743000001c0012000b0001006d6163766c616e000c0002000800010001000000"
        ),
    ),
    "ip link add link p name t0 mtu 1400 type ipvlan mode l2 private": (
        {"kind": "ipvlan", **LAN, "mtu": 1400},
        (
            "5c0000001000050683e2056b0000000000000000000000000000000000000000080004007805000008000500030000000700030074300000"
            "240012000a0001006970766c616e00001400020006000100000000000600020001000000"
        ),
    ),
    "ip link add link p name t0 mtu 1400 address 02:00:00:00:00:01 type vlan id 7": (
        {"kind": "vlan", **LAN, "id": 7, "mtu": 1400},
        (
            "5c0000001000050684e2056b000000000000000000000000000000000000000008000400780500000a00010002000000000100000800"
            "050003000000070003007430000018001200080001"
            "00766c616e0c0002000600010007000000"
        ),
    ),
    "ip link add name t0 mtu 1430 address 02:00:00:00:00:01 type vxlan id 42 remote 198.18.5.2 local 198.18.5.1 "
    "dstport 4789": (
        {"kind": "vxlan", "ipv4": LAN["ipv4"], "id": 42, "remote": "198.18.5.2", "local": "198.18.5.1"},
        (
            "780000001000050687e2056b000000000000000000000000000000000000000008000400960500000a000100020000000001000007000300"
            "743000003c0012000900010076786c616e0000002c000200080001002a00000008000400c612050108000200c6120502050007000100"
            "000006000f0012b50000"
        ),
    ),
    "ip link add name t0 mtu 1430 address 02:00:00:00:00:01 type vxlan id 42 group ff05::100 dev p dstport 4790": (
        {"kind": "vxlan", **LAN, "id": 42, "group": "ff05::100", "port": 4790},
        (
            "84000000100005068ae2056b000000000000000000000000000000000000000008000400960500000a000100020000000001000007000300"
            "74300000480012000900010076786c616e000000380002000800030003000000080001002a00000014001000ff050000000000000000000"
            "000000100050007000100000006000f0012b60000"
        ),
    ),
    "ip link add name t0 mtu 1420 type wireguard": (
        {"kind": "wireguard", "ipv4": LAN["ipv4"]},
        (
            "44000000100005068be2056b0000000000000000000000000000000000000000080004008c0500000700030074300000140012000d000100"
            "776972656775617264000000"
        ),
    ),
}
CHANGED = {
    "ip link set t0 type macvlan mode vepa": (
        5,
        {"kind": "macvlan", **LAN},
        {"mode": "vepa"},
        (
            "3c0000001000050081e2056b00000000000000000500000000000000000000001c0012000b0001006d6163766c616e000c00020008000100"
            "02000000"
        ),
    ),
    "ip link set t0 type ipvlan mode l3s vepa": (
        6,
        {"kind": "ipvlan", **LAN},
        {"mode": "l3s", "isolation": "vepa"},
        (
            "440000001000050083e2056b0000000000000000060000000000000000000000240012000a0001006970766c616e000014000200060001000"
            "20000000600020002000000"
        ),
    ),
}
JOIN = "28000000100005008de2056b000000000000000002000000000000000000000008000a0004000000"
ISOLATED = (
    "40000000100005008de2056b000000000000000002000000000000000000000020001200100001006272696467655f736c6176650c00050005"
    "00210001000000"
)
# wg set t0 private-key FILE listen-port 51820 peer ... (as PEERS)
WG_SET = (
    "50010000220005008be2056b0000000001010000070002007430000024000300000102030405060708090a0b0c0d0e0f1011121314151617"
    "18191a1b1c1d1e1f060006006cca0000080108809400008024000100202122232425262728292a2b2c2d2e2f303132333435363738393a3b"
    "3c3d3e3f140004000200ca6cc6120502000000000000000006000500190000000800030002000000480009801c0000800600010002000000"
    "08000200c6120602050003002000000028000080060001000a00000014000200fd000198000600000000000000000000050003004000000070"
    "00008024000100404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f200004000a0004d200000000fd000000000"
    "000000000000000000002000000000800030002000000200009801c000080060001000200000008000200c61209000500030018000000"
)
# wg set t0 peer KEYS[1] remove
WG_REMOVE = (
    "50000000220005008ce2056b00000000010100000700020074300000340008803000008024000100404142434445464748494a4b4c4d4e4f50"
    "5152535455565758595a5b5c5d5e5f0800030001000000"
)
# What the kernel answers to "wg show t0" then.
WG_SHOWN = (
    "2c020000220002008ce2056bfd00000000010000060006006cca00000800070000000000080001000a000000070002007430000024000300"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f240004008f40c5adb68f25624ae5b214ea767a6ec94d829d3d"
    "7b5e1ad1ba6f3e2138285fb0010880e400008024000100202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f2400"
    "02000000000000000000000000000000000000000000000000000000000000000000140006000000000000000000000000000000000006000500"
    "190000000c00080000000000000000000c000700000000000000000008000a0001000000140004000200ca6cc6120502000000000000000048"
    "0009801c0000800500030020000000060001000200000008000200c6120602280000800500030040000000060001000a00000014000200fd00"
    "0198000600000000000000000000c800008024000100404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f240002"
    "000000000000000000000000000000000000000000000000000000000000000000140006000000000000000000000000000000000006000500"
    "000000000c00080000000000000000000c000700000000000000000008000a0001000000200004000a0004d200000000fd0000000000000000"
    "0000000000000200000000200009801c0000800500030018000000060001000200000008000200c6120900"
)


def tree(data: Any, nested: dict[int, Any]) -> dict[int, Any]:
    """Return attributes as a mapping; *nested* names the attributes that contain further attributes."""
    return {
        type_: tree(value, nested[type_]) if type_ in nested else bytes(value).rstrip(b"\0")
        for type_, value in reading.attributes(data)
    }


LINK = {18: {2: {}, 5: {}}}


def link(body: bytes) -> dict[int, Any]:
    return tree(body[16:], LINK)


def wanted(declared: dict[str, Any], **more: Any) -> tuple[Any, endpoints.Endpoints]:
    spec = parse.interface({**declared, **more})
    place = EndpointContext("t0", MAC, "alias", {"ipv4": "198.18.6.7"}, {})
    return kinds.of(spec), kinds.of(spec).ends(spec, place)


@pytest.mark.parametrize("command", MADE)
def test_links_are_made_as_by_iproute2(command: str) -> None:
    declared, captured = MADE[command]
    module, due = wanted(declared)
    (message,) = module.create(due, 9, {"p": 3})
    ours, theirs = link(message.body), link(bytes.fromhex(captured)[16:])
    assert ours.pop(28) == struct.pack("=I", 9).rstrip(b"\0"), "straight into the namespace"
    if declared["kind"] == "vxlan":
        assert theirs[18][2].pop(7) == b"\1", "it says that addresses are learnt; the kernel's default"
    assert ours == theirs
    assert (message.type, message.flags | 5) == struct.unpack_from("=HH", bytes.fromhex(captured), 4)


@pytest.mark.parametrize("command", CHANGED)
def test_modes_are_changed_as_by_iproute2(command: str) -> None:
    index, declared, change, captured = CHANGED[command]
    module, before = wanted(declared)
    _, after = wanted(declared, **change)
    assert not module.change(index, before.inside, before.inside, {})
    (message,) = module.change(index, before.inside, after.inside, {})
    assert message.body[:16] == bytes.fromhex(captured)[16:32]
    assert link(message.body) == link(bytes.fromhex(captured)[16:])
    assert not requests.makes_link(message)


def test_a_tunnel_s_far_end_is_changed_alone() -> None:
    module, before = wanted({"kind": "vxlan", "ipv4": LAN["ipv4"], "id": 42, "remote": "198.18.5.2"})
    _, after = wanted({"kind": "vxlan", "ipv4": LAN["ipv4"], "id": 42, "remote": "198.18.5.3"})
    (message,) = module.change(5, before.inside, after.inside, {})
    assert link(message.body) == {18: {1: b"vxlan", 2: {2: bytes([198, 18, 5, 3])}}}


def test_a_port_is_plugged_in_while_it_is_down_and_isolated_before_it_is_up() -> None:
    module, due = wanted({"kind": "bridge", "bridge": "br0", "ipv4": LAN["ipv4"]})
    down, join, isolate = module.change(2, None, due.outside, {"br0": 4})
    assert struct.unpack_from("=II", down.body, 8) == (0, reading.IFF_UP)
    assert join.body == bytes.fromhex(JOIN)[16:]
    ours, theirs = link(isolate.body), link(bytes.fromhex(ISOLATED)[16:])
    assert ours[18][5] == theirs[18][5] == {33: b"\1"}
    assert module.change(2, None, due.inside, {}) == []


# -- wireguard --------------------------------------------------------------------------------
ALLOWED = {9: {0: {}}}


def _peers(value: Any) -> list[dict[int, Any]]:
    found = []
    for _, entry in reading.attributes(value):
        peer = {type_: bytes(one) for type_, one in reading.attributes(entry)}
        peer[9] = [tree(below, {}) for _, below in reading.attributes(peer.get(9, b""))]
        peer.setdefault(5, b"\0\0")
        found.append(peer)
    return found


def _device(bodies: list[bytes]) -> tuple[dict[int, bytes], list[dict[int, Any]]]:
    values: dict[int, bytes] = {}
    peers: list[dict[int, Any]] = []
    for body in bodies:
        for type_, value in reading.attributes(body):
            if type_ == 8:
                peers += _peers(value)
            elif type_ > 2:  # not by which the device is called
                values[type_] = bytes(value)
    return values, peers


def configured(port: int | None, peers: Any, had: Any) -> list[bytes]:
    """Return the attributes of each request that configures a tunnel."""
    words = wireguard.configuration(bytes(range(32)), port, peers, had)
    return [requests.set_wireguard(28, 10, one).body[4:] for one in words]


def test_a_tunnel_is_configured_as_by_wg() -> None:
    _, due = wanted({"kind": "wireguard", "ipv4": LAN["ipv4"], "listen_port": 51820, "peers": PEERS})
    assert due.inside is not None
    peers = due.inside.details["peers"]
    bodies = configured(51820, peers, {})
    assert _device(bodies) == _device([bytes.fromhex(WG_SET)[20:]])
    # A peer that stays as it is isn't mentioned: it keeps its session.
    bodies = configured(51820, {KEYS[0]: peers[KEYS[0]]}, peers)
    (peer,), (theirs,) = _device(bodies)[1], _device([bytes.fromhex(WG_REMOVE)[20:]])[1]
    assert peer == theirs


def test_the_kernel_s_answer_about_a_tunnel_is_what_was_declared_and_no_private_key() -> None:
    _, due = wanted({"kind": "wireguard", "ipv4": LAN["ipv4"], "listen_port": 51820, "peers": PEERS})
    assert due.inside is not None
    raw = bytes.fromhex(WG_SHOWN)[16:]
    found = wireguard.parse_device([raw])
    public = "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8="
    assert found == {**due.inside.details, "public_key": public}
    assert base64.b64encode(bytes(range(31)) + b"\x5f").decode() not in repr(found)


def test_a_key_is_made_once_and_the_root_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    public = wireguard.secret(str(path))
    assert wireguard.secret(str(path)) == public
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(bytes(range(31)) + b"\x5f")
    assert wireguard.secret(str(path)) == "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8=", "as the kernel works it out"
    path.write_bytes(b"short")
    with pytest.raises(Exception, match="is not a private key"):
        wireguard.secret(str(path))


PEER = st.fixed_dictionaries(
    {
        "allowed_ips": st.integers(0, 1200).map(
            lambda many: sorted(f"10.0.{n >> 8}.{n & 255}/32" for n in range(many))
        ),
        "keepalive": st.integers(0, 65535),
    }
)


@given(
    st.dictionaries(
        st.binary(min_size=32, max_size=32).map(lambda raw: base64.b64encode(raw).decode()), PEER, max_size=5
    )
)
@settings(PATIENT, max_examples=10)
def test_many_peers_go_in_portions_and_are_all_there(peers: dict[str, Any]) -> None:
    bodies = configured(None, peers, {})
    assert all(len(body) < 65536 for body in bodies)
    found = wireguard.parse_device([bytes(4) + body for body in bodies])["peers"]
    assert found == peers


# -- bounds -------------------------------------------------------------------------------------
@given(st.binary(max_size=300))
@settings(PATIENT)
def test_rubbish_is_an_error_of_ours_or_read_within_its_bounds(data: bytes) -> None:
    for read in (reading.parse_link, reading.parse_address, reading.parse_route, reading.parse_rate):
        try:
            read(data)
        except NetlinkError as err:
            assert "can't be understood" in str(err)
    with contextlib.suppress(NetlinkError):
        wireguard.parse_device([data])


@given(st.data())
@settings(PATIENT)
def test_a_true_answer_that_was_damaged_is_no_surprise_either(data: st.DataObject) -> None:
    raw = bytearray.fromhex(WG_SHOWN)[16:]
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = wireguard.parse_device([bytes(raw[: data.draw(st.integers(0, len(raw)))])])
    except NetlinkError:
        return
    assert set(found) == {"listen_port", "public_key", "peers"}


@given(st.sampled_from(sorted(MADE)), st.data())
@settings(PATIENT)
def test_details_of_whatever_link_are_plain_values(command: str, data: st.DataObject) -> None:
    declared, _ = MADE[command]
    module, due = wanted(declared)
    if declared["kind"] == "wireguard":
        return  # asks the kernel
    values = data.draw(st.dictionaries(st.integers(0, 40), st.binary(max_size=20)))
    seen = Link(2, "eth0", True, True, 1500, data=values, parent=data.draw(st.integers(0, 9)))
    found = module.details(seen, due.inside, {3: "p"})
    assert all(isinstance(value, (str, int)) for value in found.values())


def test_an_answer_that_is_cut_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut:
        def recv(self, _: int) -> bytes:
            return struct.pack("=IHHII", 100, 16, 2, 1, 0) + bytes(20)

    sock = Socket.__new__(Socket)
    monkeypatch.setattr(sock, "_socket", Cut(), raising=False)
    with pytest.raises(NetlinkError, match="cut short"):
        list(sock._receive())


def test_every_kind_gives_its_link_the_name_and_place_that_is_asked() -> None:
    for declared, _ in MADE.values():
        module, due = wanted(declared)
        end = due.inside
        assert isinstance(end, Endpoint)
        assert end.kind == module.LINK
        assert (due.made_as, end.name) == ("t0", "eth0")
        (message,) = module.create(due, 9, {"p": 3})
        assert isinstance(message, Message)
        assert requests.makes_link(message)
