"""Kinds whose packets don't pass the host's table: a table in the environment's namespace filters the packets."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.interfaces.interface_bench import Bench, connect, connected, listen, mac_of, meets, reaches, run
from support.interfaces.lan_bench import FAR, NETWORK, address, bridged
from support.interfaces.packets import ARP, UDP, Wire, frame, ip, kind_of, mac, packed, tags, udp
from support.rulesets import uncounted

from netspace.nftables.ruleset import Ruleset

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_processor")]
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])

OUT = [{"direction": "out", "cidr": cidr, "port": 8080} for cidr in NETWORK.values()]
MARKS = [{"direction": "out", "cidr": cidr, "protocol": "udp", "port": 5353} for cidr in FAR.values()]
MARK = b"the honest last one"


@families
def test_only_what_is_allowed_passes(bench: Bench, lan: Path, family: str) -> None:
    into = {"direction": "in", "cidr": FAR[family], "port": 80}
    bench.make(a=bridged(7, *OUT, into), b=bridged(8))
    a, own = bench.path("a"), address(7, family)
    assert meets(a, lan, FAR[family]) == own
    assert reaches(a, lan, FAR[family], 8081) is None
    assert meets(lan, a, own, 80) == FAR[family]
    assert reaches(lan, a, own, 81) is None
    assert reaches(bench.path("b"), lan, FAR[family]) is None
    assert reaches(lan, bench.path("b"), address(8, family), 80) is None
    assert meets(a, a, own) == own, "what stays inside is its own affair"


@families
def test_another_environment_never_even_on_one_link(bench: Bench, lan: Path, family: str) -> None:
    allow = [{"direction": direction, "cidr": cidr} for direction in ("in", "out") for cidr in ("0.0.0.0/0", "::/0")]
    bench.make(a=bridged(7, *allow, isolated=False), b=bridged(8, *allow, isolated=False))
    assert meets(bench.path("a"), lan, FAR[family])
    assert reaches(bench.path("a"), bench.path("b"), address(8, family)) is None
    # One that comes later is known to those that are there.
    bench.make(c=bridged(9, *allow, isolated=False))
    assert reaches(bench.path("a"), bench.path("c"), address(9, family)) is None
    assert reaches(bench.path("c"), bench.path("a"), address(7, family)) is None
    bench.apply(remove={"b", "c"})


def test_those_that_are_there_know_of_a_newcomer_in_the_same_run_and_count_on(bench: Bench, lan: Path) -> None:
    mine, theirs = bridged(7, *OUT, connections=1), bridged(8, *OUT)
    bench.make(a=mine, b=theirs)

    def table() -> str:
        return uncounted(run(f"ip netns exec {bench.path('a').name} nft -a list table inet netspace"))

    before = table()
    assert address(8, "ipv4") in before
    with listen(lan, FAR["ipv4"], 8080):
        with connected(bench.path("a"), FAR["ipv4"], 8080):
            # Only c is asked for, each time.
            steps = {step.name: set(step.changes) for step in bench.apply(bench.desired(c=bridged(9, *OUT))).steps}
            assert steps.keys() == {"a", "b", "c"}
            assert steps["a"] == steps["b"] == {"filter"}
            assert not bench.plan(bench.desired(a=mine, b=theirs, c=bridged(9, *OUT))).steps
            after = table()
            assert all(address(9, family) in after for family in FAR)
            assert before.splitlines()[0] == after.splitlines()[0], "it is the same table, changed in place"
            assert connect(bench.path("a"), FAR["ipv4"], 8080, timeout=1) is None, "what is open stays counted"
            bench.apply(remove={"c"})
            assert table() == before
            assert not bench.plan(bench.desired(a=mine, b=theirs)).steps


@pytest.mark.revocation
@families
def test_revoked_rule_cuts_a_live_connection(bench: Bench, lan: Path, family: str) -> None:
    bench.make(a=bridged(7, *OUT))
    with listen(lan, FAR[family], 8080) as server:
        client = connected(bench.path("a"), FAR[family], 8080)
        accepted, _ = server.accept()
        with client, accepted:
            client.send(b"before")
            accepted.settimeout(30)
            assert accepted.recv(100) == b"before"
            accepted.settimeout(0.4)
            bench.make(a=bridged(7))
            client.send(b"after")
            with pytest.raises(TimeoutError):
                accepted.recv(100)


def test_connections_have_a_limit(bench: Bench, lan: Path) -> None:
    bench.make(a=bridged(7, *OUT, connections=2))
    with listen(lan, FAR["ipv4"], 8080):
        with connected(bench.path("a"), FAR["ipv4"], 8080), connected(bench.path("a"), FAR["ipv4"], 8080):
            for _ in range(2):
                assert connect(bench.path("a"), FAR["ipv4"], 8080, timeout=1, tries=1) is None


def test_it_is_there_before_the_link_is_up(bench: Bench, lan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    load = Ruleset.load

    def seen(ruleset: Ruleset, text: str, since: int | None) -> int | None:
        generation = load(ruleset, text, since)
        for one in json.loads(run(f"ip netns exec {bench.path('a').name} ip -j link show eth0")):
            states.append("UP" in one["flags"])
        return generation

    monkeypatch.setattr(Ruleset, "load", seen)
    bench.make(a=bridged(7, *OUT))
    assert states == [False]


@pytest.mark.parametrize(
    "command",
    [
        "nft flush chain inet netspace output",
        "nft add rule inet netspace input accept",
        "nft delete table inet netspace",
        "nft delete table netdev netspace",
        "nft flush ruleset",
    ],
)
def test_a_changed_table_is_seen_and_repaired_alone(bench: Bench, lan: Path, command: str) -> None:
    desired = bench.make(a=bridged(7, *OUT), b=bridged(8))
    before = uncounted(run(f"ip netns exec {bench.path('a').name} nft -s list ruleset"))
    run(f"ip netns exec {bench.path('a').name} {command}")
    (step,) = bench.plan(desired).steps
    assert step.name == "a"
    assert {key: change["old"] for key, change in step.changes.items()} == {"filter": "changed by hand"}
    index = run(f"ip netns exec {bench.path('a').name} cat /sys/class/net/eth0/ifindex")
    bench.apply(desired)
    assert uncounted(run(f"ip netns exec {bench.path('a').name} nft -s list ruleset")) == before
    assert run(f"ip netns exec {bench.path('a').name} cat /sys/class/net/eth0/ifindex") == index
    assert not bench.plan(desired).steps
    assert meets(bench.path("a"), lan, FAR["ipv4"])


def test_others_tables_are_neither_drift_nor_touched(bench: Bench, lan: Path) -> None:
    desired = bench.make(a=bridged(7, *OUT))
    run(f"ip netns exec {bench.path('a').name} nft add table inet foreign")
    assert not bench.plan(desired).steps
    bench.make(a=bridged(7))
    assert "foreign" in run(f"ip netns exec {bench.path('a').name} nft list tables")


def test_nothing_to_do_runs_no_process(bench: Bench, lan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = bench.make(a=bridged(7, *OUT), b=bridged(8))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was changed, or a process was run")

    for where, name in ((subprocess, "Popen"), (Ruleset, "load"), (Ruleset, "listed")):
        monkeypatch.setattr(where, name, refuse)
    assert not bench.plan(desired).steps


def test_another_kind_takes_its_table_along(bench: Bench, lan: Path) -> None:
    bench.make(a=bridged(7, *OUT))
    bench.make(a={"kind": "veth", "allow": []})
    assert run(f"ip netns exec {bench.path('a').name} nft list tables").strip() == ""
    bench.make(a=bridged(7, *OUT))
    bench.make(a={"kind": "none"})
    assert run(f"ip netns exec {bench.path('a').name} nft list tables").strip() == ""


def test_forged_frames_do_not_leave(bench: Bench, lan: Path) -> None:
    bench.make(a=bridged(7, *OUT, *MARKS), b=bridged(8))
    path = bench.path("a")
    own_mac, far_mac = mac_of(path, "eth0"), mac_of(lan, "wire")
    own = {family: address(7, family) for family in FAR}
    known = []

    def tag() -> bytes:
        known.append(b"forged-%03d-" % len(known))
        return known[-1]

    with Wire(path, "eth0") as wire, Wire(lan, "wire") as arriving:
        for family, far in FAR.items():
            for source in (address(8, family), far, {"ipv4": "0.0.0.0", "ipv6": "::"}[family]):
                packet = ip(source, far, UDP, udp(source, far, 5353, tag()))
                wire.send(frame(far_mac, own_mac, kind_of(packet), packet))
            packet = ip(own[family], far, UDP, udp(own[family], far, 5353, tag()))
            wire.send(frame(far_mac, "02:00:00:00:00:99", kind_of(packet), packet))
            wire.send(frame(far_mac, own_mac, 0x8100, b"\0\7" + struct.pack(">H", kind_of(packet)) + packet))
            wire.send(frame(far_mac, own_mac, 0x88B5, tag()))
        for claimed in (address(8, "ipv4"), FAR["ipv4"]):
            body = bytes.fromhex("0001080006040002") + mac(own_mac) + packed(claimed) + mac(far_mac)
            wire.send(frame(far_mac, own_mac, ARP, body + packed(FAR["ipv4"]) + tag()))
        body = bytes.fromhex("0001080006040002020000000099") + packed(own["ipv4"]) + mac(far_mac)
        wire.send(frame(far_mac, own_mac, ARP, body + packed(FAR["ipv4"]) + tag()))
        for kind, source, claimed, stated in (
            (136, own["ipv6"], address(8, "ipv6"), own_mac),
            (136, own["ipv6"], own["ipv6"], "02:00:00:00:00:99"),
            (136, address(8, "ipv6"), address(8, "ipv6"), own_mac),
            (134, "fe80::1", address(8, "ipv6"), own_mac),
        ):
            message = bytes([kind, 0, 0, 0, 0x60, 0, 0, 0]) + packed(claimed) + b"\2\1" + mac(stated)
            packet = ip(source, FAR["ipv6"], 58, message + (b"" if kind == 136 else tag()), hops=255)
            wire.send(frame(far_mac, own_mac, kind_of(packet), packet))
        honest = ip(own["ipv4"], FAR["ipv4"], UDP, udp(own["ipv4"], FAR["ipv4"], 5353, MARK))
        wire.send(frame(far_mac, own_mac, kind_of(honest), honest))
        seen = arriving.until(MARK)
    assert tags(seen, known) == set()
    advertised = [one for one in seen if one[12:14] == b"\x86\xdd" and one[20] == 58 and one[54] in (134, 136)]
    assert all(one[62:78] == packed(own["ipv6"]) and one[80:86] == mac(own_mac) for one in advertised)
