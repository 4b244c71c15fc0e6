"""Kinds on a foreign network: declarations, conflicts and plans. Pure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netspace.errors import NetspaceError, SpecError
from netspace.interface import kernel_support, kinds, lan
from netspace.interface.changes import Firewall, Forwarding, InterfaceChange
from netspace.interface.observe import Observed, ObservedInterface, expected
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.interface.record import plain
from netspace.layout import Layout
from netspace.netlink.reading import Link
from netspace.nftables import table as tables
from netspace.plan import Plan
from netspace.spec import parse

# A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYOUT = Layout()
KIND = Interfaces(LAYOUT)
LINKS = {
    "eth1": Link(5, "eth1", True, True, 1500),
    "eth2": Link(6, "eth2", True, True, 9000),
    "br0": Link(7, "br0", True, True, 1500, kind="bridge"),
}
KEY = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
FOUR, SIX = "198.51.100.7/24", "fd00:5::7/64"
GOOD: dict[str, dict[str, Any]] = {
    "macvlan": {"parent": "eth1", "ipv4": FOUR},
    "ipvlan": {"parent": "eth1", "ipv4": FOUR},
    "vlan": {"parent": "eth1", "id": 7, "ipv4": FOUR},
    "vxlan": {"id": 42, "remote": "203.0.113.2", "ipv4": FOUR},
    "bridge": {"bridge": "br0", "ipv4": FOUR},
    "wireguard": {"ipv4": FOUR, "peers": [{"public_key": KEY, "allowed_ips": ["198.51.100.0/24"]}]},
}
each = pytest.mark.parametrize("kind", sorted(GOOD))


def declared(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **GOOD[kind], **more}


def whole(**interfaces: dict[str, Any]) -> dict[str, Any]:
    return {
        "environments": {name: {"image": "dir:/x", "interface": interface} for name, interface in interfaces.items()}
    }


@each
def test_both_families_gateways_and_routes_are_understood(kind: str) -> None:
    more: dict[str, Any] = {"ipv6": SIX, "routes": [{"to": "203.0.113.0/24"}]}
    if kind != "wireguard":
        more |= {"gateway4": "198.51.100.1", "gateway6": "fe80::1"}
        more["routes"].append({"to": "fd00:6::/64", "via": "fd00:5::2"})
    spec = parse.interface(declared(kind, **more))
    again = parse.interface(parse.encode(spec))
    assert again == spec
    record = KIND.plan(DesiredInterfaces(interfaces={"a": spec}), host()).steps[-1].data.record
    (end,) = [expected(LAYOUT, "a", record).inside]
    assert end is not None
    shown = {str(route) for route in end.routes}
    assert {"198.51.100.0/24", "fd00:5::/64", "203.0.113.0/24"} <= shown
    if kind != "wireguard":
        assert {"0.0.0.0/0 via 198.51.100.1", "::/0 via fe80::1", "fd00:6::/64 via fd00:5::2"} <= shown


def test_what_a_peer_is_allowed_is_routed_to_it() -> None:
    plan = KIND.plan(DesiredInterfaces(interfaces={"a": parse.interface(declared("wireguard"))}), host())
    inside = plan.steps[-1].data.wanted.inside
    assert [str(route) for route in inside.routes] == ["198.51.100.0/24"]


@pytest.mark.parametrize(
    ("kind", "more", "key", "said"),
    [
        ("macvlan", {"ipv4": None}, "ipv4", "give ipv4 or ipv6"),
        ("macvlan", {"ipv4": "198.51.100.7"}, "ipv4", "such as 198.51.100.7/24"),
        ("macvlan", {"ipv4": SIX}, "ipv4", "is not an ipv4 address"),
        ("macvlan", {"ipv6": FOUR}, "ipv6", "is not an ipv6 address"),
        ("macvlan", {"ipv4": "198.51.100.0/24"}, "ipv4", "the network's own"),
        ("macvlan", {"ipv4": "198.51.100.255/24"}, "ipv4", "broadcast"),
        ("macvlan", {"ipv4": "127.0.0.1/8"}, "ipv4", "one host"),
        ("macvlan", {"gateway4": "203.0.113.1"}, "gateway4", "not on the interface's network"),
        ("macvlan", {"gateway4": "198.51.100.7"}, "gateway4", "own address"),
        ("macvlan", {"gateway6": "fe80::1"}, "gateway6", "without an ipv6 address"),
        ("macvlan", {"routes": [{"to": "198.51.100.0/24"}]}, "routes:0:to", "already"),
        ("macvlan", {"routes": [{"to": "fd00:6::/64"}]}, "routes:0:to", "without an ipv6 address"),
        ("macvlan", {"routes": [{"to": "203.0.113.0/24", "via": "192.168.1.1"}]}, "routes:0:via", "not on"),
        ("macvlan", {"parent": "eth 1"}, "parent", "can't be a network device's name"),
        ("macvlan", {"parent": "a-name-of-sixteen"}, "parent", "15 bytes"),
        ("macvlan", {"mode": "bridge"}, "mode", "choose from private, vepa"),
        ("ipvlan", {"isolation": "bridge"}, "isolation", "choose from private, vepa"),
        ("vlan", {"id": 0}, "id", "1..4094"),
        ("vlan", {"id": 4095}, "id", "1..4094"),
        ("vxlan", {"id": 1 << 24}, "id", "1..16777215"),
        ("vxlan", {"group": "239.1.1.1"}, "remote", "either"),
        ("vxlan", {"remote": None, "group": "239.1.1.1"}, "parent", "must be given with group"),
        ("vxlan", {"remote": "239.1.1.1"}, "remote", "one host"),
        ("vxlan", {"local": "fd00::1"}, "local", "different families"),
        ("vxlan", {"port": 0}, "port", "1..65535"),
        ("bridge", {"bridge": ""}, "bridge", "can't be a network device's name"),
        ("wireguard", {"listen_port": 70000}, "listen_port", "1..65535"),
        ("wireguard", {"peers": [{"public_key": "short"}]}, "peers:0:public_key", "44 characters"),
        ("wireguard", {"peers": [{"public_key": KEY}] * 2}, "peers:1:public_key", "already"),
        (
            "wireguard",
            {"peers": [{"public_key": KEY, "endpoint": "vpn.example.com:1"}]},
            "peers:0:endpoint",
            "no names",
        ),
        ("wireguard", {"peers": [{"public_key": KEY, "endpoint": "[198.51.100.1]:1"}]}, "peers:0:endpoint", "ADDRESS"),
        ("wireguard", {"routes": [{"to": "203.0.113.0/24", "via": "198.51.100.1"}]}, "routes:0:via", "no neighbours"),
        ("wireguard", {"private_key": KEY}, "private_key", "unknown"),
    ],
)
def test_refused_with_the_path(kind: str, more: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse.declaration(whole(a=declared(kind, **more)))
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert said in found[f"netspace:environments:a:interface:{key}"]


@pytest.mark.parametrize(
    ("one", "other", "key", "said"),
    [
        (
            declared("macvlan"),
            declared("macvlan", ipv4="198.51.100.7/25"),
            "ipv4",
            "198.51.100.7 on eth1 already belongs to a",
        ),
        (declared("ipvlan"), declared("ipvlan"), "ipv4", "198.51.100.7 on eth1"),
        (declared("bridge"), declared("bridge"), "ipv4", "198.51.100.7 on br0"),
        (declared("vlan"), declared("vlan", ipv4="198.51.100.8/24"), "id", "vlan 7 on eth1 already belongs to a"),
        (
            declared("vxlan"),
            declared("vxlan", remote="203.0.113.3"),
            "id",
            "vxlan 42 at UDP port 4789 already belongs to a",
        ),
        (
            declared("wireguard", listen_port=51820),
            declared("wireguard", listen_port=51820),
            "listen_port",
            "UDP port 51820 already belongs to a",
        ),
        (declared("vxlan"), declared("wireguard", listen_port=4789), "listen_port", "UDP port 4789 is wireguard's"),
        (declared("macvlan"), declared("ipvlan", ipv4="198.51.100.8/24"), "kind", "the use of eth1 is ipvlan here"),
        (declared("ipvlan"), declared("ipvlan", ipv4="198.51.100.8/24", mode="l3"), "mode", "give both the same value"),
    ],
)
def test_what_two_cannot_have_is_refused_with_the_path(
    one: dict[str, Any], other: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(SpecError) as refused:
        parse.declaration(whole(a=one, b=other))
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert said in found[f"netspace:environments:b:interface:{key}"]


def test_the_same_on_another_parent_is_none_of_that() -> None:
    parse.declaration(
        whole(
            a=declared("macvlan"),
            b=declared("macvlan", parent="eth2"),
            c=declared("vlan"),
            d=declared("vlan", parent="eth2"),
            e=declared("vxlan"),
            f=declared("vxlan", port=4790),
        )
    )


# -- planning -----------------------------------------------------------------------------
def host(**more: Any) -> Observed:
    return Observed(forwarding={"ipv4": "0", "ipv6": "0"}, links=LINKS, **more)


def done(plan: Plan, before: Observed) -> Observed:
    """Return the host's state after an apply of *plan*."""
    known, live, kept = dict(before.records), dict(before.live), dict(before.namespaces)
    volatile, firewall = before.volatile, before.firewall
    for step in plan.steps:
        work = step.data
        if isinstance(work, Firewall):
            firewall = "intact" if work.digest else "absent"
            volatile = replace(volatile, firewall={"rendered": work.digest} if work.digest else {})
        elif isinstance(work, Forwarding):
            raise AssertionError("no packet of these kinds is the host's to forward")
        elif isinstance(work, InterfaceChange) and work.record is not None:
            known[step.name] = work.record
            kept[LAYOUT.netns_name(step.name)] = 7
            volatile.namespaces[step.name] = 7
            if work.guard is not None:
                volatile.guards.pop(step.name, None)
                if work.guard:
                    volatile.guards[step.name] = {"rendered": tables.digest(work.guard)}
            live[step.name] = ObservedInterface(expected(LAYOUT, step.name, work.record), 64, 9)
    return replace(before, records=known, live=live, namespaces=kept, volatile=volatile, firewall=firewall)


CHOICES = st.lists(st.tuples(st.sampled_from(sorted(GOOD)), st.booleans(), st.booleans()), min_size=1, max_size=5)


def some(choices: list[tuple[str, bool, bool]]) -> DesiredInterfaces:
    interfaces = {}
    for number, (kind, six, other) in enumerate(choices, 10):
        more: dict[str, Any] = {"ipv4": f"198.51.100.{number}/24", "mtu": 1400 if other and kind != "bridge" else 1500}
        if six:
            more["ipv6"] = f"fd00:5::{number}/64"
        if kind in ("vlan", "vxlan"):
            more["id"] = number
        if kind == "ipvlan":
            more["parent"] = "eth2"
        interfaces[f"e{number}"] = parse.interface(declared(kind, **more))
    return DesiredInterfaces(interfaces=interfaces)


@given(CHOICES, CHOICES)
@settings(PATIENT)
def test_those_that_are_not_asked_for_need_nothing_later(first: Any, second: Any) -> None:
    """Two runs apply some interfaces each; a plan of all these interfaces then has no steps.

    The second run also updates the tables of the first run's interfaces.
    """
    now = host()
    together: dict[str, Any] = {}
    for choices in (first, second):
        desired = some(choices)
        plan = KIND.plan(desired, now)
        if plan.refusals:  # what the others have by then
            return
        together |= desired.interfaces
        now = done(plan, now)
    assert not KIND.plan(DesiredInterfaces(interfaces=together), now).steps


@given(CHOICES, CHOICES)
@settings(PATIENT)
def test_planning_again_gives_nothing_and_nothing_is_allocated(first: Any, second: Any) -> None:
    now = host()
    for choices in (first, second):
        desired = some(choices)
        plan = KIND.plan(desired, now)
        assert not plan.refusals
        now = done(plan, now)
        assert not KIND.plan(desired, now).steps
        for name, spec in desired.interfaces.items():
            addresses = now.records[name].addresses
            assert addresses["ipv4"] == str(spec.ipv4).split("/")[0]  # type: ignore[attr-defined]
            assert set(addresses) == {fam for fam in ("ipv4", "ipv6") if getattr(spec, fam) is not None}


@pytest.mark.parametrize(
    ("kind", "more", "action"),
    [
        ("macvlan", {"mode": "vepa"}, "change"),
        ("macvlan", {"mtu": 1400}, "change"),
        ("macvlan", {"ipv4": "198.51.100.9/24"}, "change"),
        ("macvlan", {"gateway4": "198.51.100.1"}, "change"),
        ("macvlan", {"parent": "eth2"}, "rebuild"),
        ("ipvlan", {"isolation": "vepa"}, "change"),
        ("ipvlan", {"parent": "eth2"}, "rebuild"),
        ("vlan", {"id": 8}, "rebuild"),
        ("vxlan", {"remote": "203.0.113.9"}, "change"),
        ("vxlan", {"port": 4790}, "rebuild"),
        ("bridge", {"isolated": False}, "change"),
        ("wireguard", {"peers": []}, "change"),
        ("wireguard", {"listen_port": 51820}, "change"),
    ],
)
def test_what_changes_in_place_and_what_rebuilds(kind: str, more: dict[str, Any], action: str) -> None:
    now = done(KIND.plan(DesiredInterfaces(interfaces={"a": parse.interface(declared(kind))}), host()), host())
    before, after = parse.interface(declared(kind)), parse.interface(declared(kind, **more))
    plan = KIND.plan(DesiredInterfaces(interfaces={"a": after}), now)
    (step,) = [step for step in plan.steps if step.name == "a"]
    ((key, _),) = more.items()
    old, new = plain(before)[key], plain(after)[key]
    assert step.changes[key] == {"old": old, "new": new}
    assert step.action == action
    assert step.data.make == step.data.drop == (action == "rebuild")
    assert (key in step.reason) == (action == "rebuild")


@each
def test_what_the_host_lacks_is_refused_before_anything_and_others_go_on(kind: str) -> None:
    desired = DesiredInterfaces(
        interfaces={"a": parse.interface(declared(kind)), "b": parse.interface({"kind": "none"})}
    )
    lacking = replace(host(), missing={kind: f"the kernel's module {kinds.modules()[kind].NEEDS} is missing"})
    plan = KIND.plan(desired, lacking)
    assert {step.name for step in plan.steps} == {"b"}
    (refusal,) = plan.refusals
    assert refusal.name == "a"
    assert kind in refusal.message and kinds.modules()[kind].NEEDS in refusal.message
    if kinds.parents(desired.interfaces["a"]):
        plan = KIND.plan(desired, replace(host(), links={}))
        assert {step.name for step in plan.steps} == {"b"}
        assert re.search(r"this host has no (network device eth1|bridge br0)", plan.refusals[0].message)


@pytest.mark.parametrize(
    ("spec", "links", "said"),
    [
        (declared("vlan"), {"eth1": replace(LINKS["eth1"], up=False)}, "is down"),
        (declared("macvlan"), {"eth1": replace(LINKS["eth1"], master=7)}, "port of a bridge"),
        (declared("macvlan", mtu=2000), LINKS, "declare mtu: 1500"),
        (declared("vxlan", parent="eth1", mtu=1500), LINKS, "declare mtu: 1450"),
        (declared("bridge", bridge="eth1"), LINKS, "is not a bridge"),
        (declared("bridge", mtu=1400), LINKS, "declare mtu: 1500"),
    ],
)
def test_parents_that_will_not_do(spec: dict[str, Any], links: dict[str, Link], said: str) -> None:
    plan = KIND.plan(DesiredInterfaces(interfaces={"a": parse.interface(spec)}), replace(host(), links=links))
    assert not plan.steps
    assert said in plan.refusals[0].message


def test_a_single_one_is_refused_what_another_has_that_stands() -> None:
    now = done(KIND.plan(DesiredInterfaces(interfaces={"a": parse.interface(declared("vlan"))}), host()), host())
    plan = KIND.plan(DesiredInterfaces(interfaces={"b": parse.interface(declared("vlan"))}), now)
    assert not plan.steps
    assert plan.refusals[0].message == "vlan 7 on eth1 already belongs to a"
    # ...unless that one goes in the same run.
    plan = KIND.plan(DesiredInterfaces(interfaces={"b": parse.interface(declared("vlan"))}), now, {"a"})
    assert not plan.refusals


def test_every_kind_says_what_it_is_and_where_it_is_filtered() -> None:
    for name, module in kinds.modules().items():
        assert (module.FILTER == "inside") == (name in GOOD)
        assert bool(module.NEEDS) == bool(module.LINK) == (name != "none")


def test_link_local_addresses_follow_the_mac() -> None:
    assert lan.link_local("02:00:00:00:00:01") == "fe80::ff:fe00:1"


def test_modules_are_found_in_the_kernel_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_support.os, "uname", lambda: type("U", (), {"release": "6"}))
    modules, sys = tmp_path / "modules", tmp_path / "sys"
    (modules / "6").mkdir(parents=True)
    (sys / "macvlan").mkdir(parents=True)
    (modules / "6/modules.builtin").write_text("kernel/net/8021q/8021q.ko\n")
    (modules / "6/modules.dep").write_text("kernel/drivers/net/ipvlan/ipvlan.ko.xz:\nkernel/a/xwireguard.ko: a.ko\n")
    assert [kernel_support.listed(name, modules, sys) for name in ("macvlan", "8021q", "ipvlan", "wireguard")] == [
        True,
        True,
        True,
        False,
    ]


@given(st.text(max_size=20))
@settings(PATIENT)
def test_whatever_stands_for_an_endpoint_or_a_name_is_taken_or_refused(text: str) -> None:
    for kind, more in (
        ("wireguard", {"peers": [{"public_key": text, "endpoint": text}]}),
        ("macvlan", {"parent": text, "ipv4": text, "gateway4": text}),
    ):
        with pytest.raises(NetspaceError):
            parse.interface(declared(kind, **more))
