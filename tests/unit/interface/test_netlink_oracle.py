"""netspace's netlink reader and requests give the same results as pyroute2's decoder and encoder."""

from __future__ import annotations

import importlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace.interface import forwarding
from netspace.netlink import connection, message_classes, reading, requests, templates
from netspace.netlink.connection import Message, Socket
from netspace.netlink.message_classes import MessageClass
from netspace.netlink.reading import Route
from netspace.netlink.templates import Words, encode

# A busy machine is no failure.
PATIENT = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.integers(1, 2**31 - 1)
NAMES = st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True)
MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.binary(min_size=16, max_size=16).map(lambda raw: socket.inet_ntop(socket.AF_INET6, raw))
SETTINGS = st.dictionaries(st.sampled_from(sorted(reading._IPV4_NAMES.values())), st.integers(0, 2))


def decoded(source: Callable[[], type[MessageClass]], body: bytes) -> Any:
    """Return a body as decoded by pyroute2's own classes, which classes derived for requests don't change."""
    names = {message_classes.link: "ifinfmsg", message_classes.address: "ifaddrmsg", message_classes.route: "rtmsg"}
    module = message_classes.module(f"netlink.rtnl.{names[source]}")
    message = getattr(module, names[source])(struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body)
    message.decode()
    return message


# -- answers ------------------------------------------------------------------------------------
@given(NUMBERS, st.booleans(), st.booleans(), NAMES, MACS, st.integers(68, 65535), NAMES, NUMBERS, st.integers(0, 99))
@settings(PATIENT)
def test_link_said_by_pyroute2_is_read_as_meant(
    index: int, up: bool, arp: bool, name: str, mac: str, mtu: int, alias: str, master: int, group: int
) -> None:
    words: Words = (
        ("index", index),
        ("flags", up * reading.IFF_UP | (not arp) * reading.IFF_NOARP),
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MASTER", master),
        ("IFLA_GROUP", group),
        ("IFLA_QDISC", "tbf"),
        ("IFLA_LINKINFO", (("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", (("IFLA_VLAN_ID", 7),)))),
    )
    body = encode(message_classes.link, words)
    found, theirs = reading.parse_link(body), decoded(message_classes.link, body)
    assert (found.index, found.up, found.arp, found.name) == (index, up, arp, name)
    assert (found.mac, found.mtu, found.alias, found.master) == (mac, mtu, alias, master)
    assert (found.group, found.queue, found.kind) == (group, "tbf", "vlan")
    assert reading.number(found.data[1]) == 7
    assert found.name == theirs.get_attr("IFLA_IFNAME")
    assert found.mac == theirs.get_attr("IFLA_ADDRESS")


@given(NUMBERS, st.one_of(st.tuples(IPV4, st.integers(0, 32)), st.tuples(IPV6, st.integers(0, 128))))
@settings(PATIENT)
def test_address_that_is_added_is_read_as_pyroute2_does(index: int, address: tuple[str, int]) -> None:
    body = requests.add_address(index, "/".join(map(str, address))).body
    theirs = decoded(message_classes.address, body)
    assert reading.parse_address(body).index == theirs["index"] == index
    assert reading.parse_address(body).text == f"{theirs.get_attr('IFA_LOCAL')}/{theirs['prefixlen']}"
    assert reading.parse_address(body).text == "/".join(map(str, address))


@given(NUMBERS, st.sampled_from((IPV4, IPV6)), st.data())
@settings(PATIENT)
def test_route_that_is_added_is_read_as_pyroute2_does(
    index: int, family: st.SearchStrategy[str], data: st.DataObject
) -> None:
    destination, via, source = data.draw(family), data.draw(family | st.just("")), data.draw(family | st.just(""))
    whole = 128 if ":" in destination else 32
    route = Route(f"{destination}/{data.draw(st.integers(1, whole))}", via, source)
    body = requests.add_route(index, route).body
    theirs = decoded(message_classes.route, body)
    assert reading.parse_route(body) == (index, route)
    assert theirs.get_attr("RTA_OIF") == index
    assert f"{theirs.get_attr('RTA_DST')}/{theirs['dst_len']}" == route.destination
    assert (theirs.get_attr("RTA_GATEWAY") or "", theirs.get_attr("RTA_PREFSRC") or "") == (via, source)


def test_host_read_by_us_equals_pyroute2() -> None:
    with Socket() as host:
        ours = host.links()
        payloads = host.dump(Message(18, connection.DUMP, encode(message_classes.link, (("IFLA_EXT_MASK", 8),))))
    theirs = [decoded(message_classes.link, payload) for payload in payloads]
    assert [(one.index, one.name) for one in ours] == [(one["index"], one.get_attr("IFLA_IFNAME")) for one in theirs]
    for found, link in zip(ours, theirs, strict=True):
        assert (found.mtu, found.mac) == (link.get_attr("IFLA_MTU"), link.get_attr("IFLA_ADDRESS"))
        assert found.queue == link.get_attr("IFLA_QDISC")
        if inet := link.get_attr("IFLA_AF_SPEC").get_attr("AF_INET"):
            # pyroute2 calls the attribute's header "dummy" and reads on behind it: its names fit the kernel's numbers.
            assert found.ipv4 == {name: inet[name] for name in found.ipv4}


# -- requests -------------------------------------------------------------------------------------
@given(NUMBERS, NAMES, MACS, st.integers(68, 65535), st.integers(0, 99), SETTINGS, st.booleans())
@settings(PATIENT)
def test_request_filled_in_equals_one_encoded_whole(
    index: int, name: str, mac: str, mtu: int, group: int, ipv4: dict[str, int], gen: bool
) -> None:
    filled = requests.set_link(
        index, name=name, alias=f"netspace {name}", mac=mac, mtu=mtu, group=group, ipv4=ipv4, addr_gen_none=gen
    )
    families: Words = ()
    if ipv4:
        families += (("AF_INET", (("IFLA_INET_CONF", tuple((key.upper(), one) for key, one in ipv4.items())),)),)
    if gen:
        families += (("AF_INET6", (("IFLA_INET6_ADDR_GEN_MODE", 1),)),)
    words: Words = (
        ("index", index),
        ("IFLA_IFNAME", name),
        ("IFLA_IFALIAS", f"netspace {name}"),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu),
        ("IFLA_GROUP", group),
    )
    assert filled.body == encode(message_classes.link, words + ((("IFLA_AF_SPEC", families),) if families else ()))


@given(st.integers(8, 100_000_000_000), st.integers(68, 65535))
@settings(PATIENT)
def test_rate_limit_that_is_set_is_read_back(rate: int, mtu: int) -> None:
    body = requests.limit_rate(7, rate, mtu).body
    assert reading.parse_rate(body) == (7, rate // 8 * 8)


def test_requests_that_ask_equal_those_of_pyroute2(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Message] = []
    monkeypatch.setattr(Socket, "dump", lambda self, message: sent.append(message) or [])
    with Socket() as host:
        host.links(), host.addresses(), host.routes([2]), host.rates()
    route: Words = (("family", 2), ("table", 254), ("proto", connection.ROUTE_PROTOCOL))
    assert [one.body for one in sent] == [
        encode(message_classes.link, (("IFLA_EXT_MASK", 8),)),
        encode(message_classes.address, ()),
        encode(message_classes.route, route),
        encode(message_classes.rate_limit, ()),
    ]


@given(st.lists(st.binary(min_size=4, max_size=4), min_size=2, max_size=2))
def test_bytes_of_a_shape_may_be_percent_signs(values: list[bytes]) -> None:
    # 37 is "%", which the pattern of a template must not take for a hole.
    words: Words = (("index", templates.NUMBER), ("change", 0x25252525), ("IFLA_GROUP", templates.NUMBER))
    made = templates.template(message_classes.link, words).fill(*values)
    assert made[4:8] == values[0]
    assert made[12:16] == b"%%%%"
    assert made[-4:] == values[1]


def test_value_of_another_size_than_its_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="30 bytes"):
        templates.template(message_classes.link, (("index", templates.NUMBER), ("IFLA_MTU", templates.NUMBER))).fill(
            b"1234", b"1234567890"[:10]
        )
    with pytest.raises(ValueError, match="another way"):
        templates.template(message_classes.link, (("IFLA_MTU", templates.NUMBER), ("index", templates.SHORT)))


# -- the import ---------------------------------------------------------------------------------------
def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_reading_alone_imports_nothing_of_pyroute2() -> None:
    code = "import sys; from netspace.netlink import requests; from netspace.interface import observe"
    assert run(f"{code}; print([one for one in sys.modules if 'pyroute2' in one])") == "[]"


def test_message_classes_leave_the_package_to_others() -> None:
    code = (
        "import sys; from netspace.netlink import message_classes as ours; ours.link(); ours.route();"
        "assert not [one for one in sys.modules if 'pyroute2' in one];"
        "assert 'pyroute2.nslink' not in ours._imported and len(ours._imported) < 60, len(ours._imported);"
        "import pyroute2; assert pyroute2.IPRoute; import pyroute2.netlink.rtnl.ifinfmsg as theirs;"
        "assert pyroute2.netlink.rtnl.ifinfmsg.ifinfmsg is theirs.ifinfmsg; ours.address(); ours.wireguard();"
        "assert sys.modules['pyroute2'] is pyroute2; print('both')"
    )
    assert run(code) == "both"


def test_package_that_must_be_whole_is_imported_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    real = importlib.import_module

    def whole_only(name: str, package: str | None = None) -> Any:
        tried.append(name)
        if len(tried) == 1:
            raise AttributeError("a later pyroute2 needs what its __init__ has")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", whole_only)
    assert message_classes.module("netlink.rtnl.rtmsg").rtmsg
    assert tried[:2] == ["pyroute2.netlink.rtnl.rtmsg"] * 2


def test_forwarding_told_by_netlink_is_the_sysctl() -> None:
    found = {family: forwarding.read(name) for family, name in forwarding.SWITCH.items()}
    assert forwarding.switches() == {family: value for family, value in found.items() if value is not None}
