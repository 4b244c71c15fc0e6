"""Kinds of interface on an external network, with real packets: the outside is a namespace behind the host's NIC.

Kinds that this kernel lacks are skipped, with the reason. One test checks, on any kernel, that a missing kind is
refused with a clear message.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import checkout, sampling
from support.hosts import faultpoints
from support.interfaces.interface_bench import Bench, connect, listen, meets, reaches, run, settled, snapshot, within
from support.interfaces.lan_bench import BITS, FAR
from support.interfaces.lan_bench import LAN as OUTSIDE

from netspace import index
from netspace.interface import kernel_support, kinds
from netspace.interface.kinds import wireguard
from netspace.interface.record import Volatile
from netspace.netlink import connection, generic, requests
from netspace.netlink.connection import Socket

pytestmark = pytest.mark.root

NIC = "test-nic"
# On the wire between host and outside, and on the networks that the kinds make of it.
UNDER = {"ipv4": ("198.18.5.1", "198.18.5.2"), "ipv6": ("fd00:198:5::1", "fd00:198:5::2")}
BEYOND = {"ipv4": "198.18.9.9", "ipv6": "fd00:198:9::9"}
OURS = {"ipv4": "198.18.6.7", "ipv6": "fd00:198:6::7"}
OTHERS = {"ipv4": "198.18.6.8", "ipv6": "fd00:198:6::8"}
ALLOW = [
    {"direction": direction, "cidr": cidr, "protocol": protocol}
    for direction in ("in", "out")
    for cidr in ("0.0.0.0/0", "::/0")
    for protocol in ("tcp", "udp", "icmp")
]
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


@dataclass
class Lan:
    """One kind of interface on its network.

    :param device: the device by which the machine outside reaches the environment.
    """

    kind: str
    declared: dict[str, Any]
    device: str
    made: list[str] = field(default_factory=list)

    def spec(self, addresses: dict[str, str] = OURS, **more: Any) -> dict[str, Any]:
        own = {family: f"{address}/{BITS[family]}" for family, address in addresses.items()}
        return {"kind": self.kind, **self.declared, **own, "allow": ALLOW, **more}


def _macvlan() -> Lan:
    return Lan("macvlan", {"parent": NIC}, "wire")


def _ipvlan() -> Lan:
    return Lan("ipvlan", {"parent": NIC}, "wire")


def _vlan() -> Lan:
    run("ip -n test-lan link add link wire name far type vlan id 7")
    return Lan("vlan", {"parent": NIC, "id": 7}, "far")


def _bridge() -> Lan:
    run("ip link add test-br type bridge")
    run("ip link set test-br up")
    run(f"ip link set {NIC} master test-br")
    return Lan("bridge", {"bridge": "test-br"}, "wire")


def _vxlan() -> Lan:
    run("ip -n test-lan link add far type vxlan id 42 remote 198.18.5.1 local 198.18.5.2 dstport 4789")
    return Lan("vxlan", {"id": 42, "remote": "198.18.5.2"}, "far")


def _wireguard() -> Lan:
    run("ip -n test-lan link add far type wireguard")
    return Lan("wireguard", {"listen_port": 51820, "peers": []}, "far")


LANS = {"macvlan": _macvlan, "ipvlan": _ipvlan, "vlan": _vlan, "bridge": _bridge, "vxlan": _vxlan}


def _require(kind: str) -> None:
    module = kinds.modules()[kind]
    if not kernel_support.has(module.NEEDS, module.LINK):
        pytest.skip(f"this kernel has no {module.NEEDS}")


@pytest.fixture
def wire() -> Iterator[None]:
    """A NIC of the host, and the machine outside behind it."""
    run("ip netns add test-lan")
    try:
        run(f"ip link add {NIC} type veth peer name wire netns test-lan")
        for family, (near, far) in UNDER.items():
            bits = BITS[family] + (" nodad" if family == "ipv6" else "")
            run(f"ip addr add {near}/{bits} dev {NIC}")
            run(f"ip -n test-lan addr add {far}/{bits} dev wire")
        run("ip -n test-lan link set lo up")
        run(f"ip link set {NIC} up")
        run("ip -n test-lan link set wire up")
        _settle()
        yield
    finally:
        for name in ("test-br", NIC):
            subprocess.run(["ip", "link", "del", name], stderr=subprocess.DEVNULL, check=False)
        run("ip netns del test-lan")


@pytest.fixture(params=[*LANS, "wireguard"])
def lan(request: pytest.FixtureRequest, wire: None, bench: Bench) -> Lan:
    _require(request.param)
    made = LANS.get(request.param, _wireguard)()
    for family, address in FAR.items():
        bits = BITS[family] + (" nodad" if family == "ipv6" else "")
        run(f"ip -n test-lan addr add {address}/{bits} dev {made.device}")
        single = "/32" if family == "ipv4" else "/128 nodad"
        run(f"ip -n test-lan addr add {BEYOND[family]}{single} dev lo")
    if made.device != "wire":
        run(f"ip -n test-lan link set {made.device} up")
    _settle(made.device)
    if made.kind == "wireguard":
        _introduce(made, bench)
    return made


def _settle(device: str = "wire") -> None:
    """Wait until the links at both ends are ready and drop no more packets."""
    settled({NIC, "test-br"})
    within(OUTSIDE, lambda: settled({"wire", device}))


def _introduce(lan: Lan, bench: Bench) -> None:
    """Exchange the public keys of a tunnel's two ends, as an operator does with ``wg``."""
    key = "/run/test-lan.key"
    public = wireguard.secret(key)
    peer = {
        "public_key": public,
        "endpoint": "198.18.5.2:51820",
        "allowed_ips": ["198.18.6.2/32", "198.18.9.0/24", "fd00:198:6::2/128", "fd00:198:9::/64"],
    }
    lan.declared["peers"] = [peer]
    bench.make(a=lan.spec())
    ours = str(bench.kind.inspect("a")["public_key"])
    family = generic.family("wireguard")
    assert family is not None
    there = {ours: {"keepalive": 0, "allowed_ips": ["198.18.6.7/32", "fd00:198:6::7/128"]}}

    def configure() -> None:
        index = json.loads(run("ip -j link show far"))[0]["ifindex"]
        words = wireguard.configuration(Path(key).read_bytes(), 51820, there, {})
        with Socket(connection.NETLINK_GENERIC) as configuring:
            assert not configuring.batch([requests.set_wireguard(family, index, one) for one in words])

    within(OUTSIDE, configure)
    Path(key).unlink()


def inner(bench: Bench, name: str = "a") -> dict[str, Any]:
    (link,) = json.loads(run(f"ip -n {bench.path(name).name} -d -j link show eth0"))
    return dict(link)


@families
def test_reaches_and_is_reached(bench: Bench, lan: Lan, family: str) -> None:
    bench.make(a=lan.spec())
    assert meets(bench.path("a"), OUTSIDE, FAR[family]) == OURS[family]
    assert meets(OUTSIDE, bench.path("a"), OURS[family]) == FAR[family]
    assert reaches(bench.path("a"), OUTSIDE, BEYOND[family]) is None or lan.kind == "wireguard"


@families
def test_gateway_and_routes(bench: Bench, lan: Lan, family: str) -> None:
    if lan.kind == "wireguard":
        pytest.skip("a tunnel has no gateway")
    far, beyond = FAR[family], BEYOND[family]
    bench.make(a=lan.spec(**{f"gateway{family[-1]}": far}))
    assert meets(bench.path("a"), OUTSIDE, beyond) == OURS[family]
    bench.make(a=lan.spec(routes=[{"to": beyond, "via": far}]))
    assert meets(bench.path("a"), OUTSIDE, beyond) == OURS[family]
    bench.make(a=lan.spec())
    assert reaches(bench.path("a"), OUTSIDE, beyond) is None


def test_nothing_is_learnt_and_the_mac_is_pinned(bench: Bench, lan: Lan) -> None:
    bench.make(a=lan.spec())
    first = inner(bench)
    assert first["ifname"] == "eth0"
    namespace = bench.path("a").name
    for key in ("accept_ra", "autoconf"):
        assert run(f"ip netns exec {namespace} sysctl -n net.ipv6.conf.eth0.{key}").strip() == "0"
    addresses = {one["local"] for one in json.loads(run(f"ip -n {namespace} -j addr show eth0"))[0]["addr_info"]}
    local = {address for address in addresses if address.startswith("fe80:")}
    assert addresses - local == set(OURS.values())
    assert len(local) == (0 if lan.kind == "wireguard" else 1)
    bench.remove_all()
    bench.make(a=lan.spec())
    assert inner(bench).get("address") == first.get("address")


def test_again_is_nothing_and_removal_leaves_nothing(bench: Bench, lan: Lan) -> None:
    bench.remove_all()
    before = snapshot()
    desired = bench.make(a=lan.spec())
    assert not bench.plan(desired).steps
    bench.remove_all()
    assert snapshot() == before
    assert not list(Path("/var/lib/netspace/interfaces").iterdir())


def test_changes_in_place(bench: Bench, lan: Lan) -> None:
    bench.make(a=lan.spec(mtu=_mtu(lan)))
    index = inner(bench)["ifindex"]
    more: dict[str, Any] = {"mtu": _mtu(lan) - 20}
    if lan.kind == "bridge":
        run(f"ip link set test-br mtu {more['mtu']}")
    routes = [{"to": BEYOND["ipv4"]}] if lan.kind == "wireguard" else [{"to": BEYOND["ipv4"], "via": FAR["ipv4"]}]
    (step,) = bench.apply(bench.desired(a=lan.spec(OTHERS, routes=routes, **more))).steps
    assert step.action == "change"
    assert {"mtu", "ipv4", "ipv6", "routes"} <= set(step.changes)
    assert step.changes["ipv4"] == {"old": f"{OURS['ipv4']}/24", "new": f"{OTHERS['ipv4']}/24"}
    assert inner(bench)["ifindex"] == index
    assert inner(bench)["mtu"] == more["mtu"]
    if lan.kind != "wireguard":  # whose peer doesn't know the new address
        assert meets(bench.path("a"), OUTSIDE, BEYOND["ipv4"]) == OTHERS["ipv4"]
        assert meets(bench.path("a"), OUTSIDE, FAR["ipv6"]) == OTHERS["ipv6"]


def _mtu(lan: Lan) -> int:
    return {"vxlan": 1430, "wireguard": 1420}.get(lan.kind, 1500)


SPECIAL = {
    "macvlan": {"mode": "vepa"},
    "ipvlan": {"isolation": "vepa"},
    "vxlan": {"remote": "198.18.5.99"},
    "bridge": {"isolated": False},
    "wireguard": {"listen_port": 51999},
}
FIXED = {
    "macvlan": {"parent": "test-nic2"},
    "ipvlan": {"parent": "test-nic2"},
    "vlan": {"id": 8},
    "vxlan": {"id": 43},
}


def test_what_only_the_kind_knows_changes_in_place(bench: Bench, lan: Lan) -> None:
    if lan.kind not in SPECIAL:
        pytest.skip(f"{lan.kind} has nothing of that sort")
    bench.make(a=lan.spec())
    index = inner(bench)["ifindex"]
    desired = bench.desired(a=lan.spec(**SPECIAL[lan.kind]))
    (step,) = bench.apply(desired).steps
    assert step.action == "change"
    assert set(step.changes) == set(SPECIAL[lan.kind])
    assert inner(bench)["ifindex"] == index
    assert not bench.plan(desired).steps
    bench.make(a=lan.spec())
    assert meets(bench.path("a"), OUTSIDE, FAR["ipv4"]) == OURS["ipv4"]


def test_what_cannot_change_is_rebuilt_with_the_reason(bench: Bench, lan: Lan) -> None:
    if lan.kind not in FIXED:
        pytest.skip(f"{lan.kind} has nothing of that sort")
    run("ip link add test-nic2 type veth peer name wire2 netns test-lan")
    run("ip link set test-nic2 up")
    run("ip -n test-lan link set wire2 up")  # else no link on it is ever usable
    try:
        bench.make(a=lan.spec())
        inode = bench.path("a").stat().st_ino
        ((key, value),) = FIXED[lan.kind].items()
        desired = bench.desired(a=lan.spec(**{key: value}))
        (step,) = bench.apply(desired).steps
        assert step.action == "rebuild"
        assert key in step.reason
        assert step.changes[key] == {"old": lan.declared[key], "new": value}
        assert bench.path("a").stat().st_ino == inode, "its programs stay in the namespace"
        assert not bench.plan(desired).steps
    finally:
        run("ip link del test-nic2")


def test_kinds_change_into_each_other(bench: Bench, lan: Lan) -> None:
    bench.make(a={"kind": "veth"})
    inode = bench.path("a").stat().st_ino
    desired = bench.desired(a=lan.spec())
    step = next(step for step in bench.apply(desired).steps if step.name == "a")
    assert step.changes["kind"] == {"old": "veth", "new": lan.kind}
    assert not bench.plan(desired).steps
    if lan.kind != "wireguard":  # a new key, which the peer doesn't know
        assert meets(bench.path("a"), OUTSIDE, FAR["ipv4"]) == OURS["ipv4"]
    bench.make(a={"kind": "none"})
    assert [link["ifname"] for link in json.loads(run(f"ip -n {bench.path('a').name} -j link"))] == ["lo"]
    assert bench.path("a").stat().st_ino == inode


def _inside(bench: Bench, command: str) -> None:
    run(f"ip -n {bench.path('a').name} {command}")


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (lambda bench: _inside(bench, f"addr del {OURS['ipv4']}/24 dev eth0"), "inside:addresses"),
        (lambda bench: _inside(bench, "addr add 198.18.6.99/24 dev eth0"), "inside:addresses"),
        (lambda bench: _inside(bench, "-6 route del fd00:198:6::/64 dev eth0"), "inside:routes"),
        (lambda bench: _inside(bench, "link set eth0 down"), "inside:up"),
        (lambda bench: _inside(bench, "link set eth0 mtu 1300"), "inside:mtu"),
        (lambda bench: (_inside(bench, "link set eth0 down"), _inside(bench, "link set eth0 name x")), "inside:name"),
        (lambda bench: _inside(bench, "link del eth0"), "inside"),
        (lambda bench: run(f"umount -l {bench.path('a')}"), "netns"),
    ],
)
def test_drift_is_seen_and_repaired(bench: Bench, lan: Lan, spoil: Callable[[Bench], Any], key: str) -> None:
    desired = bench.make(a=lan.spec(), b={"kind": "none"})
    spoil(bench)
    found = {step.name: step for step in bench.plan(desired).steps}
    assert set(found) == {"a"}
    assert any(one == key or one.startswith(f"{key}:") for one in found["a"].changes)
    bench.apply(desired)
    assert not bench.plan(desired).steps
    for family in FAR:
        assert meets(bench.path("a"), OUTSIDE, FAR[family]) == OURS[family]


def test_a_link_that_has_no_name_yet_is_completed(bench: Bench, lan: Lan) -> None:
    """A killed run left a network device without its final name; the next apply completes it."""
    desired = bench.make(a=lan.spec())
    where = f"ip -n {bench.path('a').name}"
    run(f"{where} link set eth0 down")
    run(f"{where} link set eth0 name early")
    volatile = Volatile.read(bench.layout)
    del volatile.namespaces["a"]
    volatile.write(bench.layout)
    bench.apply(desired)
    assert "UP" in inner(bench)["flags"]
    assert not bench.plan(desired).steps
    assert meets(bench.path("a"), OUTSIDE, FAR["ipv4"]) == OURS["ipv4"]


def test_restore_without_the_declaration(bench: Bench, lan: Lan) -> None:
    desired = bench.make(a=lan.spec())
    key = bench.kind.inspect("a").get("public_key")
    _inside(bench, "link del eth0")
    run(f"ip netns del {bench.path('a').name}")
    Path("/run/netspace/network.json").unlink()
    assert bench.kind.restore().ok
    assert not bench.plan(desired).steps
    assert bench.kind.inspect("a").get("public_key") == key
    assert meets(bench.path("a"), OUTSIDE, FAR["ipv4"]) == OURS["ipv4"]


# -- parents --------------------------------------------------------------------------------
def test_a_parent_that_vanished_is_said_and_one_that_is_back_is_repaired(bench: Bench, wire: None) -> None:
    _require("macvlan")
    lan = _macvlan()
    desired = bench.make(a=lan.spec(), b={"kind": "veth"})
    run(f"ip link del {NIC}")
    plan = bench.plan(desired)
    assert not plan.steps
    (refusal,) = plan.refusals
    assert refusal.name == "a"
    assert "macvlan" in refusal.message and f"no network device {NIC}" in refusal.message
    assert not bench.kind.restore().ok
    run(f"ip link add {NIC} type veth peer name wire netns test-lan")
    run(f"ip link set {NIC} up")
    run("ip -n test-lan link set wire up")
    run("ip -n test-lan addr add 198.18.6.2/24 dev wire")
    (step,) = bench.apply(desired).steps
    assert (step.name, step.action) == ("a", "rebuild")
    assert not bench.plan(desired).steps
    assert meets(bench.path("a"), OUTSIDE, FAR["ipv4"]) == OURS["ipv4"]


def test_without_a_parent_nothing_of_that_one_is_made_and_others_are(bench: Bench) -> None:
    desired = bench.desired(
        a={"kind": "macvlan", "parent": "test-none", "ipv4": "198.18.6.7/24"},
        b={"kind": "bridge", "bridge": "lo", "ipv4": "198.18.6.7/24"},
        c={"kind": "veth"},
    )
    plan = bench.plan(desired)
    assert {refusal.name for refusal in plan.refusals} == {"a", "b"}
    assert not [outcome for outcome in bench.kind.apply(plan.steps) if outcome.error]
    assert set(bench.kind.list()) == {"c"}
    assert not bench.path("a").exists()


def test_a_parent_with_too_small_an_mtu_is_said(bench: Bench, wire: None) -> None:
    _require("macvlan")
    (refusal,) = bench.plan(bench.desired(a=_macvlan().spec(mtu=1600))).refusals
    assert "declare mtu: 1500" in refusal.message


def test_a_kernel_that_lacks_a_kind_is_said_and_nothing_is_changed(
    bench: Bench, wire: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_support, "has", lambda module, kind: module != "macvlan")
    bench.make(a={"kind": "none"})
    before = snapshot()
    desired = bench.desired(a=_macvlan().spec(), b=_macvlan().spec(OTHERS))
    plan = bench.plan(desired)
    assert not plan.steps
    assert snapshot() == before
    for refusal in plan.refusals:
        assert "macvlan" in refusal.message and "modprobe macvlan" in refusal.message
    assert {refusal.name for refusal in plan.refusals} == {"a", "b"}


def test_support_is_told_as_the_kernel_does() -> None:
    """A kind is reported as supported exactly if ``ip link add`` knows its type of link."""
    for name, module in kinds.modules().items():
        if not module.NEEDS:
            continue
        tried = subprocess.run(
            ["unshare", "-n", "ip", "link", "add", "name", "try", "type", module.LINK], capture_output=True, text=True
        )
        assert kernel_support.has(module.NEEDS, module.LINK) == ("Unknown device type" not in tried.stderr), (
            name,
            tried,
        )


# -- what is particular -----------------------------------------------------------------------
def test_environments_on_one_parent_do_not_reach_each_other(bench: Bench, wire: None) -> None:
    for family, address in FAR.items():
        run(f"ip -n test-lan addr add {address}/{BITS[family]}{' nodad' * (family == 'ipv6')} dev wire")
    for kind in ("macvlan", "ipvlan", "bridge"):
        module = kinds.modules()[kind]
        if not kernel_support.has(module.NEEDS, module.LINK):
            continue
        lan = LANS[kind]()
        bench.make(a=lan.spec(), b=lan.spec(OTHERS))
        for family in FAR:
            assert meets(bench.path("a"), OUTSIDE, FAR[family]) == OURS[family]
            assert meets(OUTSIDE, bench.path("b"), OTHERS[family]) == FAR[family]
            with listen(bench.path("b"), OTHERS[family], 8080):
                assert connect(bench.path("a"), OTHERS[family], 8080) is None, kind
        bench.remove_all()


def test_a_port_is_isolated_and_put_back_where_it_was_taken_out(bench: Bench, wire: None) -> None:
    run(f"ip link set {NIC} address 52:54:00:00:00:01")  # a random one may be above ours: a bridge has the lowest
    lan = _bridge()
    before = run("ip -j link show test-br")
    run("ip -n test-lan addr add 198.18.6.2/24 dev wire")
    desired = bench.make(a=lan.spec())
    end = bench.host_end("a")

    def port() -> dict[str, Any]:
        (link,) = json.loads(run(f"ip -d -j link show {end}"))
        return {"master": link.get("master"), **link["linkinfo"].get("info_slave_data", {})}

    assert (port()["master"], port()["isolated"]) == ("test-br", True)
    run(f"bridge link set dev {end} isolated off")
    assert "outside:isolated" in bench.plan(desired).steps[0].changes
    run(f"ip link set {end} nomaster")
    (step,) = bench.apply(desired).steps
    assert step.changes["outside:bridge"] == {"old": "", "new": "test-br"}
    assert (port()["master"], port()["isolated"]) == ("test-br", True)
    assert meets(bench.path("a"), OUTSIDE, "198.18.6.2") == OURS["ipv4"]
    assert json.loads(run("ip -j link show test-br"))[0]["address"] == json.loads(before)[0]["address"]


def test_a_tunnel_s_packets_are_the_hosts(bench: Bench, wire: None) -> None:
    _require("vxlan")
    lan = _vxlan()
    bench.make(a=lan.spec())
    assert ":4789" in run("ss -lun")
    assert ":4789" not in run(f"ip netns exec {bench.path('a').name} ss -lun")


def test_addresses_of_another_that_stands_are_refused(bench: Bench, wire: None) -> None:
    _require("macvlan")
    lan = _macvlan()
    bench.make(a=lan.spec())
    plan = bench.plan(bench.desired(b=lan.spec()))
    assert not plan.steps
    assert plan.refusals[0].message == f"{OURS['ipv4']} on {NIC} already belongs to a"


def test_a_private_key_is_the_roots_alone_and_shown_nowhere(bench: Bench, wire: None) -> None:
    _require("wireguard")
    bench.make(a={"kind": "wireguard", "ipv4": "198.18.6.7/24"})
    path = Path("/var/lib/netspace/interfaces/a.key")
    assert path.stat().st_mode & 0o7777 == 0o600
    raw = path.read_bytes()
    shown = json.dumps([bench.kind.inspect("a"), bench.kind.list()]) + repr(bench.kind.observe())
    record = Path("/var/lib/netspace/interfaces/a.json").read_text()
    for text in (shown, record):
        assert base64.b64encode(raw).decode() not in text and raw.hex() not in text
    assert bench.kind.inspect("a")["public_key"] in record
    assert path.name not in {entry.name for entry in Path("/var/lib/netspace/interfaces").glob("*.json")}
    path.unlink()
    _inside(bench, "link del eth0")
    desired = bench.desired(a={"kind": "wireguard", "ipv4": "198.18.6.7/24"})
    (outcome,) = bench.kind.apply(bench.plan(desired).steps)
    assert "put it back" in outcome.error
    bench.remove_all()


APPLY = """
import sys
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.layout import Layout
from netspace.spec import parse

kind = Interfaces(Layout())
wanted = {"b": {"kind": "dummy", "ipv4": "198.51.100.7/24", "ipv6": "fd00:5::7/64"}} if sys.argv[1] == "make" else {}
desired = DesiredInterfaces(interfaces={name: parse.interface(value) for name, value in wanted.items()})
for _ in range(2):
    plan = kind.plan(desired, kind.observe(desired), kind.names() - set(wanted))
    failed = [outcome.error for outcome in kind.apply(plan.steps) if outcome.error]
    assert not failed and not plan.refusals, (failed, plan.refusals)
assert not plan.steps
"""


def test_the_example_of_a_new_kind_is_applied_as_it_stands(tmp_path: Path) -> None:
    if not kernel_support.has("dummy", "dummy"):
        pytest.skip("this kernel has no dummy")
    library = checkout.with_example_kind(tmp_path / "library")
    # Before the library that this test itself uses, and what that needs.
    paths = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")])
    for what in ("make", "remove"):
        done = subprocess.run(
            [sys.executable, "-c", APPLY, what], env={"PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if what == "make":
            shown = run("ip -n netspace-b addr show eth0")
            assert "198.51.100.7/24" in shown and "fd00:5::7/64" in shown
    assert not Path("/run/netns/netspace-b").exists()


@pytest.mark.skipif(not faultpoints.SUPPORTED, reason="the tracer knows x86-64 only")
def test_a_run_killed_at_any_step_is_repaired_by_the_next(
    bench: Bench, lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of ``test_host_faults.py`` for kinds of interface that need an external network."""
    monkeypatch.setattr(index, "SETTLED", 0.0)  # else the index takes a record or not, as fast as the machine is
    bench.remove_all()
    nothing, first = snapshot(), bench.desired(a=lan.spec(mtu=_mtu(lan)), b={"kind": "tap"})
    changed = bench.desired(a=lan.spec(OTHERS, **SPECIAL.get(lan.kind, {})), b={"kind": "none"})
    bench.apply(first)
    made = snapshot()
    bench.apply(changed)
    after = snapshot()

    def create() -> None:
        bench.apply(first)

    def change() -> None:
        bench.apply(changed)

    turns = [
        ("create", bench.remove_all, create, made),
        ("change", create, change, after),
        ("remove", create, bench.remove_all, nothing),
    ]
    wrong, tried, missed = [], 0, []
    for name, before, act, looks in turns:
        before()
        reference = faultpoints.run(act)
        assert not reference.error, reference.error
        points = {point.what: point for point in reversed(reference.changing) if point.what != "write pipe"}
        for point in sampling.todays(list(points.values()), 3):
            before()
            tried += 1
            if not faultpoints.run(act, at=point).reached:
                missed.append(f"{name}: {point}")
            act()
            if (found := snapshot()) != looks:
                wrong.append(f"{name}, killed at {point}: {found} instead of {looks}")
    assert tried > 20 and len(missed) <= tried // 20, f"{len(missed)} of {tried} were not reached: {missed}"
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)
    print(f"{lan.kind}: {tried} fault points")
