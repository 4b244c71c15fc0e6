"""The host after an apply: complete or repaired, unchanged by a second apply, and with nothing left over."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.interfaces.interface_bench import WIRE, WORLD, Bench, meets, run, snapshot, veth, within

from netspace import files
from netspace.interface import endpoints, forwarding, netns
from netspace.netlink.connection import Socket
from netspace.nftables.library import NftablesError
from netspace.nftables.ruleset import Ruleset
from netspace.spec.types import Cidr, Network

pytestmark = pytest.mark.root

OUT = {"direction": "out", "cidr": "198.18.0.0/15", "port": 8080}
LED = ["443:8443", "198.18.0.1:53:53/udp"]
SWITCHES = tuple(forwarding.SWITCH.values())


def test_namespace_holds_what_is_promised(bench: Bench) -> None:
    bench.make(plain={"kind": "none"}, wired=veth())
    for name, links in (("plain", {"lo"}), ("wired", {"lo", "eth0"})):
        shown = json.loads(run(f"ip netns exec {bench.path(name).name} ip -j addr"))
        assert {link["ifname"] for link in shown} == links
        assert all("UP" in link["flags"] for link in shown)
        assert "fe80" not in json.dumps(shown)
        read = within(bench.path(name), lambda: {key: forwarding.read(key) for key in netns.SETTINGS})
        assert read == dict(netns.SETTINGS)


def test_second_apply_changes_and_writes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = bench.make(a=veth(OUT, publish=LED), b={"kind": "none"})
    kept = [*bench.layout.records("interfaces").iterdir(), bench.layout.run / "network.json"]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in kept]

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was changed, or a process was run")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(Ruleset, "load", refuse)
    monkeypatch.setattr(Ruleset, "listed", refuse)
    monkeypatch.setattr(Socket, "batch", refuse)
    monkeypatch.setattr(files, "write", refuse)
    plan = bench.apply(desired)
    assert not plan.steps
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in kept] == before


def test_a_foreign_rule_change_is_no_drift(bench: Bench) -> None:
    desired = bench.make(a=veth(OUT))
    run("nft add table inet foreign")
    try:
        assert not bench.plan(desired).steps
    finally:
        run("nft delete table inet foreign")


def test_removal_leaves_nothing(bench: Bench) -> None:
    before = snapshot()
    bench.make(a=veth(OUT, {"direction": "in", "cidr": "fd00:198:18::/48"}), b={"kind": "none"}, c=veth())
    assert [forwarding.read(name) for name in SWITCHES] == ["1", "1"]
    assert forwarding.switches() == {"ipv4": "1", "ipv6": "1"}  # by netlink
    bench.remove_all()
    before["namespaces"] = [name for name in before["namespaces"] if "netspace" not in name]
    assert snapshot() == before


def test_test_mode_touches_nothing(bench: Bench) -> None:
    before = snapshot()
    assert {step.name for step in bench.plan(bench.desired(a=veth(OUT))).steps} == {
        "a",
        "host:firewall",
        "host:forwarding",
    }
    assert snapshot() == before


def _delete_address(bench: Bench) -> None:
    run(f"ip -n {bench.path('a').name} addr del {bench.address('a', 'ipv4')}/32 dev eth0")


def _add_address(bench: Bench) -> None:
    run(f"ip -n {bench.path('a').name} addr add fd00:bad::1/128 dev eth0 nodad")


def _delete_route(bench: Bench) -> None:
    run(f"ip route del {bench.address('a', 'ipv4')}")


def _delete_rule(bench: Bench) -> None:
    run("nft flush chain inet netspace spoofed")


def _delete_table(bench: Bench) -> None:
    run("nft delete table inet netspace")


def _rename(bench: Bench) -> None:
    run(f"ip link set {bench.host_end('a')} down")
    run(f"ip link set {bench.host_end('a')} name stolen")


def _delete_host_end(bench: Bench) -> None:
    run(f"ip link del {bench.host_end('a')}")


def _take_down(bench: Bench) -> None:
    run(f"ip link set {bench.host_end('a')} down")


def _take_inner_down(bench: Bench) -> None:
    run(f"ip -n {bench.path('a').name} link set eth0 down")


def _delete_namespace(bench: Bench) -> None:
    run(f"ip netns del {bench.path('a').name}")


def _replace_namespace(bench: Bench) -> None:
    _delete_namespace(bench)
    run(f"ip netns add {bench.path('a').name}")


def _change_mtu(bench: Bench) -> None:
    run(f"ip link set {bench.host_end('a')} mtu 1300")


def _loosen(bench: Bench) -> None:
    forwarding.write(f"net/ipv4/conf/{bench.host_end('a')}/proxy_arp", "1")
    forwarding.write(f"net/ipv6/conf/{bench.host_end('a')}/accept_ra", "2")


def _change_mac(bench: Bench) -> None:
    run(f"ip -n {bench.path('a').name} link set eth0 address 02:00:00:00:00:99")


def _stop_forwarding(bench: Bench) -> None:
    forwarding.write(SWITCHES[0], "0")


@pytest.mark.parametrize(
    ("spoil", "step", "action", "key"),
    [
        (_delete_address, "a", "change", "inside:addresses"),
        (_add_address, "a", "change", "inside:addresses"),
        (_delete_route, "a", "change", "outside:routes"),
        (_delete_rule, "host:firewall", "change", "table"),
        (_delete_table, "host:firewall", "change", "table"),
        (_rename, "a", "change", "outside:name"),
        (_delete_host_end, "a", "rebuild", "outside"),
        (_take_down, "a", "change", "outside:up"),
        (_take_inner_down, "a", "change", "inside:up"),
        (_delete_namespace, "a", "rebuild", "netns"),
        (_replace_namespace, "a", "rebuild", "netns"),
        (_change_mtu, "a", "change", "outside:mtu"),
        (_loosen, "a", "change", "outside:ipv4:proxy_arp"),
        (_change_mac, "a", "change", "inside:mac"),
        (_stop_forwarding, "host:forwarding", "change", "net.ipv4.ip_forward"),
    ],
)
def test_drift_is_seen_and_repaired(
    bench: Bench, outside: Path, spoil: Callable[[Bench], None], step: str, action: str, key: str
) -> None:
    rules = [{"direction": "out", "cidr": WORLD[family], "port": 8080} for family in WORLD]
    desired = bench.make(a=veth(*rules), bystander=veth(*rules))
    spoil(bench)
    found = {one.name: one for one in bench.plan(desired).steps}
    assert found[step].action == action
    assert key in found[step].changes
    assert found[step].changes[key]["old"] != found[step].changes[key]["new"]
    listed = bench.kind.list()
    if spoil is _delete_namespace:
        assert listed["a"]["state"] == "missing"
    else:
        assert listed["a"]["state"] == "differs" and {key, step} & set(listed["a"]["differs"]), listed
    bench.apply(desired)
    assert not bench.plan(desired).steps
    assert {one["state"] for one in bench.kind.list().values()} == {"present"}
    for family in WIRE:
        assert meets(bench.path("a"), outside, WIRE[family][1]) == WIRE[family][0]


def test_drift_of_one_that_only_has_lo(bench: Bench) -> None:
    desired = bench.make(a={"kind": "none"})
    _replace_namespace(bench)
    (step,) = bench.plan(desired).steps
    assert step.changes["netns"]
    bench.apply(desired)
    assert not bench.plan(desired).steps
    assert "UP" in run(f"ip -n {bench.path('a').name} link show lo")


def test_changes_in_place(bench: Bench, outside: Path) -> None:
    bench.make(a=veth(), b=veth())
    inode, index = bench.path("a").stat().st_ino, _index(bench, "a")
    other = bench.address("b", "ipv4"), bench.address("b", "ipv6")
    plan = bench.apply(bench.desired(a=veth(OUT, mtu=1400, ipv4="10.203.77.7", ipv6="fd6e:6574:7370::77")))
    (step,) = (step for step in plan.steps if step.name == "a")
    assert step.action == "change"
    assert {"mtu", "allow", "address:ipv4", "address:ipv6"} == set(step.changes)
    assert step.changes["mtu"] == {"old": 1500, "new": 1400}
    assert (bench.path("a").stat().st_ino, _index(bench, "a")) == (inode, index)
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1])
    assert bench.address("a", "ipv4") == "10.203.77.7"
    assert (bench.address("b", "ipv4"), bench.address("b", "ipv6")) == other


def test_kind_changes_inside_the_same_namespace(bench: Bench, outside: Path) -> None:
    bench.make(a={"kind": "none"})
    inode = bench.path("a").stat().st_ino
    plan = bench.apply(bench.desired(a=veth(OUT)))
    assert next(step for step in plan.steps if step.name == "a").changes["kind"] == {"old": "none", "new": "veth"}
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1])
    bench.make(a={"kind": "none"})
    assert [link["ifname"] for link in json.loads(run(f"ip -n {bench.path('a').name} -j link"))] == ["lo"]
    assert "netspace" not in run("nft list ruleset")
    assert bench.path("a").stat().st_ino == inode


def test_addresses_can_be_swapped(bench: Bench, outside: Path) -> None:
    bench.make(a=veth(OUT, ipv4="10.203.1.1"), b=veth(OUT, ipv4="10.203.1.2"))
    desired = bench.make(a=veth(OUT, ipv4="10.203.1.2"), b=veth(OUT, ipv4="10.203.1.1"))
    assert not bench.plan(desired).steps
    for name in ("a", "b"):
        assert meets(bench.path(name), outside, WIRE["ipv4"][1])


def test_restore_after_a_reboot(bench: Bench, outside: Path) -> None:
    desired = bench.make(a=veth(OUT), b={"kind": "none"})
    addresses = bench.address("a", "ipv4")
    run(f"ip link del {bench.host_end('a')}")
    for name in ("a", "b"):
        run(f"ip netns del {bench.path(name).name}")
    run("nft delete table inet netspace")
    for switch in SWITCHES:
        forwarding.write(switch, "0")
    shutil.rmtree("/run/netspace")
    assert bench.kind.restore().ok
    assert not bench.plan(desired).steps
    assert not bench.kind.restore().plan.steps
    assert bench.address("a", "ipv4") == addresses
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1])


def test_list_and_inspect(bench: Bench) -> None:
    bench.make(a=veth(OUT), b={"kind": "none"})
    listed = bench.kind.list()
    assert json.loads(json.dumps(listed)) == listed
    assert listed["b"] == {
        "kind": "none",
        "addresses": {},
        "gateways": {},
        "host_end": "",
        "netns": "/run/netns/netspace-b",
        "state": "present",
    }
    run(f"ip link set {bench.host_end('a')} mtu 1300")
    seen = bench.kind.inspect("a")
    assert json.loads(json.dumps(seen)) == seen
    assert seen["drift"] == {"outside:mtu": {"old": 1300, "new": 1500}}
    assert seen["firewall"] == "intact"


def test_without_nftables_no_interface_is_made_but_namespaces_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> int:
        raise NftablesError(errno.EPROTONOSUPPORT, "Protocol not supported")

    desired = bench.desired(a=veth(OUT), b={"kind": "none"})
    with monkeypatch.context() as patched:
        patched.setattr(Ruleset, "load", lacking)
        outcomes = {one.step.name: one.error for one in bench.kind.apply(bench.plan(desired).steps)}
    assert "use a kernel with CONFIG_NF_TABLES_INET" in outcomes["host:firewall"]
    assert "packet filter" in outcomes["a"]
    assert outcomes["b"] == ""
    assert not bench.path("a").exists()
    assert forwarding.read(SWITCHES[0]) == "0"
    bench.make(a={"kind": "none"})
    assert bench.path("a").exists()


def test_a_foreign_link_of_our_name_is_left_alone(bench: Bench) -> None:
    name = endpoints.host_name("netspace", "a")
    run(f"ip link add {name} type veth peer name foreign")
    try:
        before = run(f"ip -d link show {name}")
        outcomes = bench.kind.apply(bench.plan(bench.desired(a=veth())).steps)
        (error,) = (one.error for one in outcomes if one.error)
        assert name in error
        bench.remove_all()
        assert run(f"ip -d link show {name}") == before
    finally:
        run(f"ip link del {name}")


def test_full_range_is_refused_for_what_finds_no_place(bench: Bench) -> None:
    network = Network(ipv4=Cidr("198.51.100.0/29"))
    five = bench.desired(**{f"e{number}": veth() for number in range(6)})
    desired = type(five)(network, five.interfaces)
    plan = bench.plan(desired)
    assert len(plan.refusals) == 1
    assert "198.51.100.0/29" in plan.refusals[0].message
    assert len([step for step in plan.steps if step.action == "create"]) == 5


def test_router_advertisements_still_reach_the_host(bench: Bench, outside: Path) -> None:
    names = ["net/ipv6/conf/test-wire/accept_ra", "net/ipv6/conf/default/accept_ra"]
    before = [forwarding.read(name) for name in names]
    assert before == ["1", "1"]
    bench.make(a=veth({"direction": "out", "cidr": "::/0"}))
    assert [forwarding.read(name) for name in names] == ["2", "2"]
    bench.remove_all()
    assert [forwarding.read(name) for name in names] == before


class Killed(BaseException):
    """Exception that stands for SIGKILL: the library doesn't catch it."""


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A function: after ``killer(n)``, a run makes n changes and is killed before the next one; -1: it isn't killed.

    If that next change is a batch of netlink messages, the first half of the batch is still sent.
    """
    left = [-1]

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                if name == "batch":
                    original(args[0], args[1][: len(args[1]) // 2])
                left[0] = -2
            if left[0] == -2:
                raise Killed
            if left[0] > 0:
                left[0] -= 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, replacement)

    watch(files, "write")
    watch(files, "remove")
    watch(netns, "_mount")
    watch(netns, "write_setting")
    watch(netns, "remove")
    watch(Ruleset, "load")
    watch(forwarding, "write")
    watch(Socket, "batch")

    def arm(count: int) -> None:
        left[0] = count

    yield arm
    left[0] = -1


@pytest.fixture
def a_bridge() -> Iterator[str]:
    run("ip link add test-killed type bridge")
    yield "test-killed"
    run("ip link del test-killed")


@pytest.mark.parametrize("what", ["create", "change", "remove"])
def test_whatever_is_cut_short_is_repaired(
    bench: Bench, killer: Callable[[int], None], a_bridge: str, what: str
) -> None:
    before = snapshot()
    tunnel = {"kind": "vxlan", "remote": "198.18.0.2", "ipv4": "198.18.7.7/24"}
    port = {"kind": "bridge", "bridge": a_bridge, "ipv4": "198.18.8.7/24"}
    old = bench.desired(
        a={"kind": "none"}, b=veth(OUT, publish=LED), c=veth(), d={**tunnel, "id": 42}, e={"kind": "none"}
    )
    new = bench.desired(
        a=veth(OUT, publish=LED),
        b={"kind": "none"},
        c=veth(OUT, mtu=1400, ipv4="10.203.1.1"),
        d={**tunnel, "id": 43},
        e=port,
    )
    for count in range(200):
        if what != "create":
            bench.apply(old)
        killer(count)
        try:
            if what == "remove":
                bench.apply(remove=bench.kind.names())
            else:
                bench.apply(new)
            break
        except Killed:
            killer(-1)
            if what == "remove":
                bench.remove_all()
            else:
                bench.apply(new)
                assert not bench.plan(new).steps
                bench.remove_all()
            after = snapshot()
            assert after == {**before, "namespaces": after["namespaces"]}
            assert not [name for name in after["namespaces"] if name.startswith("netspace-")]
    else:
        raise AssertionError("it never came to an end")
    killer(-1)
    assert count > 8, "hardly anything was cut short"


def _index(bench: Bench, name: str) -> int:
    return int(json.loads(run(f"ip -j link show {bench.host_end(name)}"))[0]["ifindex"])
