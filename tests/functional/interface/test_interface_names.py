"""Rules for names, with a real resolver's answers, real sets and real packets."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import msgspec
import pytest
from support.interfaces.interface_bench import WIRE, WORLD, Bench, meets, reaches, run, veth
from support.interfaces.lan_bench import FAR, NETWORK, bridged
from support.interfaces.name_server import NameServer, served
from support.waiting import until

from netspace import files
from netspace.host.host import Host
from netspace.interface import forwarding
from netspace.interface import record as records
from netspace.interface.names import answers, record, refresher, resolver, sets
from netspace.interface.names.refresher import Refresher
from netspace.interface.record import Volatile
from netspace.layout import Layout
from netspace.spec import parse

pytestmark = pytest.mark.root
NAME = "deb.example.org"
PUBLIC = "93.184.215.14"
OTHER = "93.184.215.15"
HOSTILE = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "10.203.0.1", "198.18.0.1", "255.255.255.255"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[NameServer, Path]]:
    with served(tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    files.remove(record.path(Layout()))


@pytest.fixture
def public(outside: Path) -> Iterator[Path]:
    """The machine outside with two public addresses, which are routed only within these namespaces."""
    for one in (PUBLIC, OTHER):
        run(f"ip -n test-outside addr add {one}/32 dev lo")
        run(f"ip route add {one}/32 via {WIRE['ipv4'][1]}")
    yield outside
    for one in (PUBLIC, OTHER):
        run(f"ip route del {one}/32")
        run(f"ip -n test-outside addr del {one}/32 dev lo")


def looking(configuration: Path) -> Refresher:
    return Refresher(Layout(), lambda name, family, _: resolver.ask(name, family, configuration))


def out(**more: Any) -> dict[str, Any]:
    return {"direction": "out", "name": NAME, "port": 8080, **more}


def elements(table: str = "", where: str = "") -> set[str]:
    """Return all addresses in the sets that hold the addresses of names: the host's table's sets, or a namespace's."""
    inside = f"ip netns exec {where} " if where else ""
    listed = json.loads(run(f"{inside}nft -j list table inet netspace"))["nftables"]
    named = [one["set"] for one in listed if one.get("set", {}).get("name", "").startswith("name.")]
    return {str(one["elem"]["val"]) for set_ in named for one in set_.get("elem", ())}


def test_name_opens_the_way_to_its_addresses(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    bench.make(a=veth(out()))
    a = bench.path("a")
    assert reaches(a, public, PUBLIC) is None, "nothing passes before the name is looked up"
    looking(configuration).step(time.time())
    assert meets(a, public, PUBLIC) == WIRE["ipv4"][0]
    assert reaches(a, public, PUBLIC, 8081) is None
    assert reaches(a, public, OTHER) is None
    assert elements() == {PUBLIC}


def test_unchanged_apply_writes_nothing(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    desired = bench.make(a=veth(out()))
    looking(configuration).step(time.time())
    files = [record.path(bench.layout), *bench.layout.run.rglob("*.json")]
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    asked, state = len(zone.asked), bench.kind.list()["a"]["state"]
    plan = bench.plan(desired)
    assert (state, plan.steps, plan.notes) == ("present", [], [])
    assert not bench.apply(desired).steps
    assert before == [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    assert len(zone.asked) == asked, "an apply asks nobody"


def test_change_of_others_keeps_the_addresses(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    bench.make(a=veth(out()))
    looking(configuration).step(time.time())
    bench.make(b=veth(out(port=9090), {"direction": "out", "cidr": WORLD["ipv4"]}))
    assert elements() == {PUBLIC}
    run("nft delete table inet netspace")  # by hand: the next apply loads it whole, and fills it
    bench.make(a=veth(out()))
    assert elements() == {PUBLIC}
    assert meets(bench.path("a"), public, PUBLIC)


def test_restore_needs_no_network(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    bench.make(a=veth(out()))
    looking(configuration).step(time.time())
    zone.silent = True
    # What a reboot takes.
    run("nft delete table inet netspace")
    forwarding.restore(Volatile.read(bench.layout).forwarding)
    Volatile.path(bench.layout).unlink()
    asked = len(zone.asked)
    bench.kind.restore()
    assert elements() == {PUBLIC} and len(zone.asked) == asked


def test_new_answer_replaces_the_old_one(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC, ttl=0)
    bench.make(a=veth(out()))
    watch, now = looking(configuration), time.time()
    watch.step(now)
    zone.has(NAME, OTHER, ttl=2**31 - 1)
    watch.step(now + answers.FLOOR - 1)
    assert elements() == {PUBLIC}, "a time to live of 0 counts as a minute"
    watch.step(now + answers.FLOOR)
    assert elements() == {OTHER}
    assert watch.known[NAME, "ipv4"].due <= now + answers.FLOOR + answers.CEILING


@pytest.mark.parametrize("kind", ["loopback", "metadata", "hosts own", "mapped"])
def test_rebinding_to_what_is_not_public_opens_nothing(
    bench: Bench, public: Path, server: tuple[NameServer, Path], kind: str
) -> None:
    zone, configuration = server
    six = ["::1", "fe80::1", "::ffff:10.203.0.1", "fd00:198:18::1"]
    hostile = {"loopback": ["127.0.0.1", "::1"], "metadata": ["169.254.169.254"], "hosts own": HOSTILE, "mapped": six}
    zone.has(NAME, PUBLIC, *hostile[kind])
    bench.make(a=veth(out()))
    looking(configuration).step(time.time())
    assert elements() == {PUBLIC}
    known = bench.kind.inspect("a")["names"][NAME]
    assert known["problem"]["code"] == "name-refused" and hostile[kind][0] in known["problem"]["text"]


@pytest.mark.parametrize("own", [f"{PUBLIC}/32", f"{OTHER}/24"])
def test_hosts_address_or_neighbour_is_never_a_names(bench: Bench, server: tuple[NameServer, Path], own: str) -> None:
    zone, configuration = server
    run(f"ip addr add {own} dev lo")
    try:
        zone.has(NAME, PUBLIC)
        bench.make(a=veth(out()))
        looking(configuration).step(time.time())
        assert elements() == set()
        assert reaches(bench.path("a"), None, PUBLIC) is None
    finally:
        run(f"ip addr del {own} dev lo")


def test_gateway_is_not_reached_by_a_name(bench: Bench, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    bench.make(a=veth(out(cidr="10.0.0.0/8")))
    zone.has(NAME, bench.gateway("a", "ipv4"))
    looking(configuration).step(time.time())
    assert reaches(bench.path("a"), None, bench.gateway("a", "ipv4")) is None


def test_cidr_lets_private_addresses_of_it_pass(bench: Bench, outside: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, WIRE["ipv4"][1], "10.9.9.9")
    bench.make(a=veth(out(cidr=WORLD["ipv4"])))
    watch = looking(configuration)
    watch.step(time.time())
    assert elements() == set(), "the host itself is in this network, and the rule's is wider"
    assert "in this host's network" in bench.kind.inspect("a")["names"][NAME]["problem"]["text"]
    bench.make(a=veth(out(cidr="198.18.0.0/30")))
    watch.step(time.time())
    assert elements() == {WIRE["ipv4"][1]}
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1])


def test_filter_inside_has_the_addresses(bench: Bench, lan: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, FAR["ipv4"])
    bench.make(a=bridged(7, out(cidr=NETWORK["ipv4"])))
    assert reaches(bench.path("a"), lan, FAR["ipv4"]) is None
    looking(configuration).step(time.time())
    assert meets(bench.path("a"), lan, FAR["ipv4"])
    assert elements(where=bench.path("a").name) == {FAR["ipv4"]}
    desired = bench.desired(a=bridged(7, out(cidr=NETWORK["ipv4"]), connections=7))
    bench.apply(desired)  # its table is loaded whole
    assert elements(where=bench.path("a").name) == {FAR["ipv4"]}
    assert not bench.plan(desired).steps


def test_missing_set_keeps_no_other_name_closed(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    zone.has("new.example.org", OTHER)
    bench.make(a=veth(out()))
    # As after an apply that was killed between its record and its table.
    loaded, path = records.read_one(bench.layout, "a"), records.path(bench.layout, "a")
    assert loaded is not None
    more = msgspec.structs.replace(loaded, interface=parse.interface(veth(out(), out(name="new.example.org"))))
    files.write_json(path, more.encoded())
    watch = looking(configuration)
    watch.step(time.time())
    assert elements() == {PUBLIC}
    assert {name for name, _ in watch.known} == {NAME, "new.example.org"}
    desired = bench.desired(a=veth(out(), out(name="new.example.org")))
    bench.apply(desired)
    assert elements() == {PUBLIC, OTHER}
    run("nft delete table inet netspace")
    errors = sets.fill(bench.layout, [NAME], time.time(), watch.known)
    assert "No such file" in errors["host"]


def test_apply_keeps_the_hosts_own_address_out_inside(bench: Bench, lan: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    run(f"ip addr add {PUBLIC}/32 dev lo")
    try:
        zone.has(NAME, PUBLIC, OTHER)
        bench.make(a=bridged(7, out()))
        looking(configuration).step(time.time())
        bench.apply(bench.desired(a=bridged(7, out(), connections=7)))  # its table is loaded whole, and filled
        assert elements(where=bench.path("a").name) == {OTHER}
    finally:
        run(f"ip addr del {PUBLIC}/32 dev lo")


# -- answers of those who mean harm ---------------------------------------------------------------
def test_wrong_number_is_ignored(server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)

    def forged(question: dns.message.QueryMessage, answer: dns.message.Message) -> list[bytes]:
        lie = dns.message.make_response(question)
        lie.answer.append(dns.rrset.from_text(f"{NAME}.", 300, "IN", "A", OTHER))
        lie.id = question.id ^ 0x5555
        return [lie.to_wire(), answer.to_wire()]

    zone.forge = forged
    assert resolver.ask(NAME, "ipv4", configuration).keys() == {PUBLIC}


def test_answer_to_another_question_is_ignored(server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)

    def forged(question: dns.message.QueryMessage, answer: dns.message.Message) -> list[bytes]:
        lie = dns.message.make_response(dns.message.make_query("other.example.org.", "A", id=question.id))
        lie.answer.append(dns.rrset.from_text("other.example.org.", 300, "IN", "A", OTHER))
        return [lie.to_wire(), answer.to_wire()]

    zone.forge = forged
    assert resolver.ask(NAME, "ipv4", configuration).keys() == {PUBLIC}


def test_records_of_other_names_do_not_count(server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)

    def forged(_: dns.message.QueryMessage, answer: dns.message.Message) -> list[bytes]:
        answer.answer.append(dns.rrset.from_text("other.example.org.", 300, "IN", "A", OTHER))
        answer.additional.append(dns.rrset.from_text(f"{NAME}.", 300, "IN", "A", OTHER))
        return [answer.to_wire()]

    zone.forge = forged
    assert resolver.ask(NAME, "ipv4", configuration).keys() == {PUBLIC}


def test_aliases_are_followed_with_their_time_to_live(server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.zone[f"{NAME}.", "CNAME"] = (7, ["cdn.example.net."])
    zone.has("cdn.example.net", PUBLIC, ttl=4000)
    assert resolver.ask(NAME, "ipv4", configuration) == {PUBLIC: 7.0}


@pytest.mark.parametrize("length", [2, 40])
def test_endless_or_circular_aliases_are_no_answer(server: tuple[NameServer, Path], length: int) -> None:
    zone, configuration = server
    chain = [f"{NAME}.", *(f"c{number}.example.org." for number in range(1, length))]
    for here, there in zip(chain, [*chain[1:], chain[0]], strict=True):
        zone.zone[here, "CNAME"] = (300, [there])
    with pytest.raises(resolver.UnansweredError) as refused:
        resolver.ask(NAME, "ipv4", configuration)
    assert refused.value.code == "name-unanswered"


def test_huge_answer_is_refused(server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, *(f"93.184.{number // 250}.{number % 250 + 1}" for number in range(answers.MOST + 1)))
    with pytest.raises(resolver.UnansweredError, match="has 65 addresses; at most 64") as refused:
        resolver.ask(NAME, "ipv4", configuration)
    assert refused.value.code == "name-refused"
    zone.has(NAME, *(f"93.184.1.{number + 1}" for number in range(answers.MOST)))
    assert len(resolver.ask(NAME, "ipv4", configuration)) == answers.MOST  # by TCP


@pytest.mark.parametrize("junk", [b"", b"\0", b"\xff" * 2000, b"\0" * 12])
def test_junk_is_no_answer(server: tuple[NameServer, Path], junk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    zone.forge = lambda *_: [junk]
    monkeypatch.setattr(resolver, "SECONDS", 1.0)
    with pytest.raises(resolver.UnansweredError):
        resolver.ask(NAME, "ipv4", configuration)


def test_absent_name_has_a_code_of_its_own(server: tuple[NameServer, Path]) -> None:
    _, configuration = server
    with pytest.raises(resolver.UnansweredError) as refused:
        resolver.ask(NAME, "ipv4", configuration)
    assert refused.value.code == "name-absent"


def test_failure_keeps_the_last_answer_and_is_told(bench: Bench, public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    desired = bench.make(a=veth(out()))
    watch, now = looking(configuration), time.time()
    watch.step(now)
    zone.rcode = dns.rcode.SERVFAIL
    watch.step(now + 301)
    assert elements() == {PUBLIC}
    (note,) = bench.plan(desired).notes
    assert note.startswith(f"name {NAME}: no resolver answers") and "its last addresses count for" in note
    assert bench.kind.inspect("a")["names"][NAME]["problem"]["code"] == "name-unanswered"
    watch.step(now + 301 + answers.STALE)
    assert watch.known[NAME, "ipv4"].until == {} and elements() == set(), "and only for a bounded time"


def test_time_that_is_over_is_the_kernels_affair(bench: Bench, public: Path) -> None:
    """An address of a name leaves the kernel's set when its time is over, without another lookup."""
    bench.make(a=veth(out()))
    now = time.time()
    known = answers.answered(answers.Known(), {PUBLIC: 60.0}, now - 60 - answers.STALE + 2)
    record.begin(bench.layout)
    record.write(bench.layout, {(NAME, "ipv4"): known})
    sets.fill_host(bench.layout, now)
    assert elements() == {PUBLIC}
    until(lambda: elements() == set())


# -- the service ----------------------------------------------------------------------------------
def test_service_comes_and_goes_with_the_last_name(public: Path, server: tuple[NameServer, Path]) -> None:
    zone, configuration = server
    zone.has(NAME, PUBLIC)
    run(f"mount --bind {configuration} /etc/resolv.conf")  # this host's alone (scripts/sandbox)
    layout = Layout()
    host = Host(layout)

    def declared(*allow: dict[str, Any]) -> Any:
        environment = {"image": "dir:/srv/none", "interface": veth(*allow)}
        return parse.declaration({"environments": {"a": environment}})

    try:
        wanted = declared(out())
        planned = host.converge_interfaces(wanted, test=True)
        assert ("service", "start") in [(step.kind, step.action) for step in planned.plan.steps]
        assert not record.path(layout).exists() and not zone.asked
        done = host.converge_interfaces(wanted)
        assert done.ok, done
        until(lambda: elements() == {PUBLIC})
        assert not host.converge_interfaces(wanted).plan.steps
        pid = host.supervisor.observe([refresher.NAME])[refresher.NAME].pid
        os.kill(pid, signal.SIGKILL)
        assert elements() == {PUBLIC}
        zone.has(NAME, OTHER)
        record.write(layout, {})  # as after a crash in the middle of its work
        until(lambda: elements() == {OTHER})
        assert host.converge_interfaces(declared()).ok
        assert refresher.NAME not in host.supervisor.observe() and not record.path(layout).exists()
    finally:
        host.teardown()
        run("umount /etc/resolv.conf")
