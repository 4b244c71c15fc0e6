"""The plan of interfaces: pure, complete, and empty if nothing differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from netspace.errors import NetspaceError, StateError
from netspace.interface import claims, endpoints, forwarding, kinds, netns
from netspace.interface.apply import ApplyRun
from netspace.interface.changes import Firewall, Forwarding, InterfaceChange
from netspace.interface.firewall import netns_table
from netspace.interface.observe import Observed, ObservedInterface, expected
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.interface.record import Record, Volatile, path
from netspace.layout import Layout
from netspace.netlink import reading
from netspace.nftables import table as tables
from netspace.plan import Plan
from netspace.spec import parse

LAYOUT = Layout()
KIND = Interfaces(LAYOUT)
SWITCHES = {"ipv4": "0", "ipv6": "0"}
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,6}[a-z0-9]", fullmatch=True)
SPECS = st.one_of(
    st.just({"kind": "none"}),
    st.fixed_dictionaries(
        {"kind": st.just("veth")},
        optional={
            "mtu": st.sampled_from([1400, 1500]),
            "allow": st.lists(
                st.fixed_dictionaries(
                    {"direction": st.sampled_from(["in", "out"]), "cidr": st.sampled_from(["0.0.0.0/0", "fd00:5::/32"])}
                ),
                max_size=2,
            ),
        },
    ),
).map(parse.interface)
DECLARED = st.dictionaries(NAMES, SPECS, max_size=6)
PORTS = st.lists(st.sampled_from(["80:80", "443:8443", "192.0.2.1:80:80", "53:53/udp"]), max_size=2, unique=True)
PUBLISHED = st.dictionaries(
    NAMES, SPECS | PORTS.map(lambda ports: parse.interface({"kind": "veth", "publish": ports})), max_size=6
)


def done(plan: Plan, before: Observed) -> Observed:
    """Return the host's state after an apply of *plan*."""
    records, live = dict(before.records), dict(before.live)
    kept, volatile = dict(before.namespaces), before.volatile
    firewall, switches = before.firewall, dict(before.forwarding)
    for step in plan.steps:
        if isinstance(step.data, Firewall):
            firewall = "intact" if step.data.digest else "absent"
            loaded = {"rendered": step.data.digest} if step.data.digest else {}
            volatile = replace(volatile, firewall=loaded)
        elif isinstance(step.data, Forwarding):
            switches = {family: "1" if family in step.data.needed else "0" for family in switches}
            before_us = {forwarding.SWITCH[family]: "0" for family in step.data.needed}
            volatile = replace(volatile, forwarding=before_us)
        elif isinstance(step.data, InterfaceChange) and step.data.record is None:
            del records[step.name], kept[LAYOUT.netns_name(step.name)]
            live.pop(step.name, None)
            volatile.guards.pop(step.name, None)
        else:
            records[step.name] = step.data.record
            kept[LAYOUT.netns_name(step.name)] = 7
            volatile.namespaces[step.name] = 7
            if step.data.guard is not None:
                volatile.guards.pop(step.name, None)
                if step.data.guard:
                    volatile.guards[step.name] = {"rendered": tables.digest(step.data.guard)}
            wanted = expected(LAYOUT, step.name, step.data.record)
            live[step.name] = ObservedInterface(wanted, 2, 9)
    return Observed(records, kept, volatile, live, firewall, switches)


@given(DECLARED, DECLARED)
def test_planning_again_gives_nothing_and_undeclared_ones_stay(first: dict[str, Any], second: dict[str, Any]) -> None:
    host = Observed(forwarding=SWITCHES)
    for declared in (first, second):
        desired = DesiredInterfaces(interfaces=declared)
        before = set(host.records)
        host = done(KIND.plan(desired, host), host)
        assert not KIND.plan(desired, host).steps
        assert set(host.records) == before | set(declared)
    host = done(KIND.plan(DesiredInterfaces(), host, set(host.records)), host)
    assert not host.records
    assert host.firewall == "absent"
    assert host.forwarding == SWITCHES
    assert not KIND.plan(DesiredInterfaces(), host).steps


@given(PUBLISHED, PUBLISHED, st.sets(NAMES))
def test_noted_claims_of_others_plan_as_their_records_do(
    first: dict[str, Any], second: dict[str, Any], some: set[str]
) -> None:
    nothing = Observed(forwarding=SWITCHES)
    host = done(KIND.plan(DesiredInterfaces(interfaces=first), nothing), nothing)
    remove = {name for name in host.records if name in some or len(name) % 3 == 0} - second.keys()
    near = second.keys() | remove
    others = {name: claims.of(record) for name, record in host.records.items() if name not in near}
    noted = msgspec.json.decode(msgspec.json.encode(others), type=dict[str, claims.Claims])
    records, live = ({name: one for name, one in every.items() if name in near} for every in (host.records, host.live))
    desired = DesiredInterfaces(interfaces=second)
    whole = KIND.plan(desired, host, remove)
    few = KIND.plan(desired, replace(host, records=records, live=live, others=noted), remove)
    assert KIND.concerns_all(few) == KIND.concerns_all(whole)
    if not KIND.concerns_all(whole):
        assert few == whole


def test_what_is_to_be_removed_and_is_not_there_is_no_step() -> None:
    assert not KIND.plan(DesiredInterfaces(), Observed(forwarding=SWITCHES), {"a"}).steps


def test_a_kernel_without_ipv6_gets_ipv4_and_a_note() -> None:
    host = Observed(forwarding={"ipv4": "0"})
    plan = KIND.plan(DesiredInterfaces(interfaces={"a": parse.interface({"kind": "veth"})}), host)
    assert set(plan.steps[-1].data.record.addresses) == {"ipv4"}
    assert any("ipv6" in note for note in plan.notes)


@given(NAMES, NAMES)
def test_host_end_names_fit_and_tell_environments_and_instances_apart(one: str, other: str) -> None:
    names = {endpoints.host_name(instance, name) for instance in ("netspace", "second") for name in (one, other)}
    assert len(names) == 2 * len({one, other})
    assert all(len(name) <= 15 for name in names)
    first = int(endpoints.mac("netspace", one)[:2], 16)
    assert first & 3 == 2, "locally administered and unicast"


def test_records_round_trip_and_damaged_ones_say_so(tmp_path: Path) -> None:
    spec = parse.interface({"kind": "veth", "allow": [{"direction": "in", "cidr": "10.0.0.0/8", "port": 80}]})
    record = Record(spec, {"ipv4": "10.203.0.9"}, {"ipv4": "10.203.0.1"}, "nsx")
    file = path(Layout(root=tmp_path), "a")
    assert Record.decoded(record.encoded(), file) == record
    for damaged in ({}, {"interface": {"kind": "nope"}, "addresses": {}, "gateways": {}, "host_end": ""}):
        with pytest.raises(StateError, match="apply again"):
            Record.decoded(damaged, file)
    assert Volatile.read(Layout(root=tmp_path)) == Volatile()


def test_inspecting_an_unknown_one_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match="there are none yet"):
        Interfaces(Layout(root=tmp_path)).inspect("a")


def test_every_kind_has_what_the_kinds_promise() -> None:
    assert set(kinds.modules()) >= {"none", "veth"}
    for name, module in kinds.modules().items():
        assert isinstance(module.NEEDS, str), name
        assert module.FILTER in ("host", "inside", ""), name
        assert callable(module.ends)
        assert callable(module.create)


def test_namespaces_are_found_in_mountinfo() -> None:
    text = (
        "76 43 0:43 / /run rw,relatime - tmpfs sandbox rw,mode=755\n"
        "80 76 0:4 net:[4026532252] /run/netns/netspace-web rw shared:3 - nsfs nsfs rw\n"
        "81 76 0:4 mnt:[4026532253] /run/netns/other rw - nsfs nsfs rw\n"
        "82 76 0:4 net:[4026532254] /run/elsewhere/web rw - nsfs nsfs rw\n"
    )
    assert netns.found(Path("/run/netns"), text) == {"netspace-web": 4026532252}


@given(st.binary(max_size=200))
def test_attributes_of_rubbish_end_quietly(data: bytes) -> None:
    assert sum(len(value) + 4 for _, value in reading.attributes(data)) <= len(data)


def test_forwarding_is_restored_to_what_it_was() -> None:
    switch = forwarding.SWITCH["ipv4"]
    assert forwarding.changes(["ipv4"], SWITCHES, {}) == {"net.ipv4.ip_forward": {"old": "0", "new": "1"}}
    assert not forwarding.changes(["ipv4"], {"ipv4": "1"}, {})
    assert not forwarding.changes([], {"ipv4": "1"}, {}), "somebody else's choice stays"
    assert forwarding.changes([], {"ipv4": "1"}, {switch: "0"}) == {"net.ipv4.ip_forward": {"old": "1", "new": "0"}}
    assert forwarding.changes([], {"ipv4": "0"}, {switch: "0"}), "stopped between restoring and forgetting"


def test_what_is_no_refusal_of_the_kernels_ends_the_run_also_out_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: Any, **__: Any) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(netns_table, "put", put)
    monkeypatch.setattr(netns, "enter", lambda _: None)
    work = InterfaceChange(None, endpoints.Endpoints(), ObservedInterface(), guard=())
    with pytest.raises(ValueError, match="unforeseen"):
        ApplyRun(Layout(root=tmp_path))._guard_only({"a": work, "b": work})


@pytest.mark.parametrize("mtu", [0, 1279, 65536])
def test_an_mtu_that_no_ipv6_can_use_is_refused(mtu: int) -> None:
    with pytest.raises(NetspaceError, match="interface:mtu"):
        parse.interface({"kind": "veth", "mtu": mtu})
