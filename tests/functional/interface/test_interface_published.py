"""Published ports: every peer that reaches the host reaches the environment there, except other environments."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.interfaces.interface_bench import (
    ANY,
    WIRE,
    Bench,
    assert_cut,
    connect,
    connected,
    listen,
    run,
    snapshot,
    veth,
    within,
)
from support.interfaces.lan_bench import FAR, address, bridged
from support.waiting import until

from netspace import sockets
from netspace.host.host import Host
from netspace.interface import conntrack, forwarding
from netspace.spec import parse
from netspace.spec.publish import OUTWARDS

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])
SERVED = ["443:8443", "53:53/udp"]
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
ON_BRIDGE = {"ipv4": "198.18.6.1", "ipv6": "fd00:198:6::1"}
_KIND = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def asked(client: Path | None, address: str, port: int, protocol: str) -> str | None:
    """Send a request to an echo server (see :func:`serving`).

    Return the client's address as the server saw it; None: no answer.
    """
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]

    def ask() -> str | None:
        with socket.socket(_KIND["ipv6" if ":" in address else "ipv4"], kind) as one:
            one.settimeout(0.25)
            try:
                one.connect((address, port))
                one.send(b"?")
                return one.recv(100).decode() or None
            except OSError:
                return None

    return within(client, ask)


def answered(client: Path | None, address: str, port: int, protocol: str) -> str:
    """Call ``asked``, but wait for an answer as long as a busy machine needs."""
    found: list[str | None] = []

    def met() -> str | None:
        found.append(asked(client, address, port, protocol))
        return found[-1]

    until(met, f"{address} does not answer at {port}/{protocol}")
    return str(found[-1])


@contextlib.contextmanager
def serving(path: Path | None, ports: dict[str, int]) -> Iterator[None]:
    """Serve at each of *ports*, by protocol and in both families; each answer is the client's address."""
    program = f"""
import select, socket
tcp, udp = [], []
for family in (socket.AF_INET, socket.AF_INET6):
    for protocol, port in {ports!r}.items():
        one = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", port))
        (tcp if protocol == "tcp" else udp).append(one)
        if protocol == "tcp":
            one.listen(64)
print("ready", flush=True)
while True:
    for one in select.select([*tcp, *udp], [], [])[0]:
        if one in udp:
            data, peer = one.recvfrom(100)
            one.sendto(peer[0].encode(), peer)
        else:
            made, peer = one.accept()
            made.send(peer[0].encode())
            made.close()
"""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    server = within(path, start)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


INSIDE = {"tcp": 8443, "udp": 53}
OUTER = {"tcp": 443, "udp": 53}


@families
def test_who_reaches_the_host_reaches_the_environment_and_nothing_else_of_it(
    bench: Bench, outside: Path, family: str
) -> None:
    bench.make(a=veth(publish=SERVED))
    near, far = WIRE[family]
    own = bench.address("a", family)
    with serving(bench.path("a"), INSIDE):
        for protocol, inside in INSIDE.items():
            assert answered(outside, near, OUTER[protocol], protocol) == far, "the environment sees who asks"
            assert asked(outside, own, inside, protocol) is None, "straight to it nothing passes"
            assert asked(outside, own, OUTER[protocol], protocol) is None
            assert inside == OUTER[protocol] or asked(outside, near, inside, protocol) is None
            other = {"tcp": "udp", "udp": "tcp"}[protocol]
            assert asked(outside, near, OUTER[protocol], other) is None
            assert asked(outside, bench.gateway("a", family), OUTER[protocol], protocol) == far, "as any other address"


@families
def test_host_reaches_it_by_any_address_but_loopback(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth(publish=SERVED))
    with serving(bench.path("a"), INSIDE):
        for protocol, port in OUTER.items():
            for address in (WIRE[family][0], bench.gateway("a", family)):
                assert answered(None, address, port, protocol) == address
            assert asked(None, LOOPBACK[family], port, protocol) is None
            assert asked(None, bench.address("a", family), INSIDE[protocol], protocol) is None
        with serving(None, OUTER):
            assert answered(None, LOOPBACK[family], 443, "tcp"), "loopback stays the host's own"


@families
def test_no_environment_reaches_another_by_its_published_port(
    bench: Bench, outside: Path, lan: Path, family: str
) -> None:
    for one in ON_BRIDGE.values():
        run(f"ip addr add {one}/{'64 nodad' if ':' in one else '24'} dev test-br")
    hosts = [WIRE[family][0], ON_BRIDGE[family], str(getattr(bench.desired().network, family).network[1])]
    everything = [
        {"direction": way, "cidr": cidr, "protocol": protocol}
        for way in ("out", "in")
        for protocol in ("tcp", "udp")
        for cidr in (ANY[family], *hosts)
    ]
    port = bridged(7, *everything, isolated=False)
    bench.make(a=veth(publish=SERVED), routed=veth(*everything), neighbour=port)
    with serving(bench.path("a"), INSIDE):
        for protocol, number in OUTER.items():
            assert answered(lan, ON_BRIDGE[family], number, protocol), "who is no environment is served"
            for host in hosts:
                for name in ("routed", "neighbour", "a"):
                    assert asked(bench.path(name), host, number, protocol) is None, (name, host)
    # To them the host's ports are the host's own, as their rules say.
    with serving(None, {"tcp": 443}):
        for name in ("routed", "neighbour"):
            assert answered(bench.path(name), ON_BRIDGE[family], 443, "tcp")


@families
def test_nor_by_its_address_where_the_other_is_on_somebody_s_network(bench: Bench, lan: Path, family: str) -> None:
    run(f"ip addr add {ON_BRIDGE[family]}/{'64 nodad' if family == 'ipv6' else '24'} dev test-br")
    everything = [
        {"direction": way, "cidr": ANY[family], "protocol": protocol}
        for way in ("out", "in")
        for protocol in ("tcp", "udp")
    ]
    gateways = {f"gateway{family[-1]}": ON_BRIDGE[family]}
    bench.make(a=veth(*everything), b=bridged(7, *everything, isolated=False, **gateways))
    own, others, port = bench.address("a", family), address(7, family), {"tcp": 80}
    with serving(bench.path("a"), port), serving(bench.path("b"), port), serving(lan, port):
        assert answered(bench.path("a"), FAR[family], 80, "tcp"), "who is no environment is reached"
        assert answered(bench.path("b"), FAR[family], 80, "tcp")
        assert asked(bench.path("a"), others, 80, "tcp") is None
        assert asked(bench.path("b"), own, 80, "tcp") is None
    assert delivered(bench.path("a"), lan, FAR[family])
    assert not delivered(bench.path("a"), bench.path("b"), others), "not even one way"
    assert not delivered(bench.path("b"), bench.path("a"), own)


def delivered(sender: Path, receiver: Path, host: str) -> bool:
    """Send one datagram; return whether it arrives."""
    kind = _KIND["ipv6" if ":" in host else "ipv4"]
    with within(receiver, lambda: socket.socket(kind, socket.SOCK_DGRAM)) as waiting:
        waiting.bind((host, 53))
        waiting.settimeout(0.3)
        with within(sender, lambda: socket.socket(kind, socket.SOCK_DGRAM)) as sending:
            sending.sendto(b"?", (host, 53))
            try:
                return bool(waiting.recv(10))
            except TimeoutError:
                return False


def at(host: str, port: int) -> str:
    """Return an address and a port in the form of a publication."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@families
def test_by_address_it_is_that_address_alone(bench: Bench, outside: Path, family: str) -> None:
    near, far = WIRE[family]
    bench.make(a=veth(publish=[f"{at(near, 443)}:8443", f"{at(near, 53)}:53/udp"]))
    other = {"ipv4": "ipv6", "ipv6": "ipv4"}[family]
    with serving(bench.path("a"), INSIDE):
        for protocol, port in OUTER.items():
            assert answered(outside, near, port, protocol) == far
            assert asked(outside, bench.gateway("a", family), port, protocol) is None
            assert asked(outside, WIRE[other][0], port, protocol) is None
        moving, bits = {"ipv4": ("198.18.0.9", 24), "ipv6": ("fd00:198:18::9", 64)}[family]
        bench.make(a=veth(publish=[f"{at(moving, 443)}:8443"]))
        assert asked(outside, near, 443, "tcp") is None
        run(f"ip addr add {moving}/{bits}{' nodad' if family == 'ipv6' else ''} dev test-wire")
        try:
            assert answered(outside, moving, 443, "tcp") == far, "once the host has the address"
        finally:
            run(f"ip addr del {moving}/{bits} dev test-wire")
    needed = {fam: forwarding.read(name) for fam, name in forwarding.SWITCH.items()}
    assert needed == {family: "1", other: "0"}, "what needs no forwarding gets none"


def test_what_passes_through_the_host_is_not_caught(bench: Bench, outside: Path, lan: Path) -> None:
    for near, target in (("198.18.6.1/24", "198.18.66.7/32"), ("fd00:198:6::1/64", "fd00:198:66::7/128")):
        option = "-6" if ":" in near else "-4"
        nodad = " nodad" if ":" in near else ""
        run(f"ip addr add {near}{nodad} dev test-br")
        run(f"ip -n test-lan addr add {target}{nodad} dev lo")
        run(f"ip -n test-lan {option} route add default via {near.partition('/')[0]}")
        run(f"ip {option} route add {target} via {FAR['ipv6' if ':' in near else 'ipv4']}")
    bench.make(a=veth(publish=SERVED))
    with serving(bench.path("a"), INSIDE), serving(lan, {"tcp": 443}):
        for family, target in (("ipv4", "198.18.66.7"), ("ipv6", "fd00:198:66::7")):
            assert answered(outside, WIRE[family][0], 443, "tcp"), "it is published"
            assert answered(outside, target, 443, "tcp") == WIRE[family][1]
        run("ip -n test-lan link set wire down")
        assert asked(outside, "198.18.66.7", 443, "tcp") is None, "it was the machine behind the host that answered"


@pytest.mark.revocation
@families
@pytest.mark.parametrize("near", [False, True], ids=["from outside", "from the host"])
def test_a_port_that_is_taken_back_cuts_live_connections(
    bench: Bench, outside: Path, family: str, *, near: bool
) -> None:
    bench.make(a=veth(publish=SERVED))
    with listen(bench.path("a"), bench.address("a", family), 8443) as server:
        client = connected(None if near else outside, WIRE[family][0], 443)
        accepted, _ = server.accept()
        assert_cut(client, accepted, lambda: bench.make(a=veth(publish=["444:8443"])))


@families
def test_who_sends_all_the_time_is_led_where_it_leads_now(bench: Bench, outside: Path, family: str) -> None:
    """A port moves to another environment while a client sends without a pause; the client reaches the new one.

    The kernel forwards a connection by its first packet, and a connection without a pause never ends.
    """
    bench.make(a=veth(), b=veth())
    with socket_of(outside, family) as client, serving(bench.path("a"), INSIDE), serving(bench.path("b"), INSIDE):
        assert not hears(client, family)
        for name in ("a", "b", "a"):
            bench.make(**{one: veth(publish=SERVED if one == name else []) for one in ("a", "b")})
            until(lambda: hears(client, family), f"it is not led to {name}")


def test_so_it_is_after_a_run_that_was_cut_short(bench: Bench, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = bench.desired(a=veth(publish=SERVED))
    bench.make(a=veth())
    with socket_of(outside, "ipv4") as client, serving(bench.path("a"), INSIDE):
        assert not hears(client, "ipv4")

        def killed(_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(conntrack, "forget_stale", killed)
            with pytest.raises(KeyboardInterrupt):
                bench.apply(desired)
        assert not hears(client, "ipv4")
        bench.apply(desired)
        until(lambda: hears(client, "ipv4"), "it is not led on")


def hears(client: socket.socket, family: str) -> bool:
    """Send a packet to the published port; return whether an answer arrives."""
    with contextlib.suppress(OSError):
        client.settimeout(0.1)
        client.sendto(b"?", (WIRE[family][0], 53))
        return bool(client.recv(100))
    return False


def socket_of(path: Path, family: str) -> socket.socket:
    return within(path, lambda: socket.socket(_KIND[family], socket.SOCK_DGRAM))


THIEVES = pytest.mark.parametrize("thief", ["thief", ""], ids=["environment", "program of the host"])


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@THIEVES
def test_nobody_takes_over_a_published_port_by_sending_from_it(
    bench: Bench, outside: Path, thief: str, protocol: str, family: str
) -> None:
    out = {"direction": "out", "cidr": ANY[family], "protocol": protocol}
    bench.make(a=veth(publish=SERVED), thief=veth(out))
    port = next(USERS_PORTS)
    with silent(outside), bound(bench.path(thief) if thief else None, family, protocol, OUTER[protocol]) as stealing:
        stealing.setblocking(False)
        with contextlib.suppress(BlockingIOError, PermissionError):
            stealing.connect((WIRE[family][1], port))
            stealing.send(b"mine")
        assert served(bench, outside, family, protocol, port) == WIRE[family][1]


@families
def test_nor_by_having_sent_from_it_before_it_was_published(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth({"direction": "in", "cidr": ANY[family]}))  # the host tracks connections
    port = next(USERS_PORTS)
    with bound(None, family, "udp", 53) as early, bound(outside, family, "udp", port) as user:
        early.sendto(b"mine", (WIRE[family][1], port))
        user.settimeout(30)
        assert user.recv(100) == b"mine"  # else it might come in place of the answer
    bench.make(a=veth(publish=SERVED))
    assert served(bench, outside, family, "udp", port) == WIRE[family][1]


@families
@pytest.mark.parametrize("publish", [SERVED, []], ids=["published", "not published"])
def test_environments_connect_from_ports_that_nobody_can_publish(
    bench: Bench, outside: Path, publish: list[str], family: str
) -> None:
    """A connection to outside gets a source port from a range that can't be published and that the host doesn't use."""
    far = WIRE[family][1]
    out = [{"direction": "out", "cidr": ANY[family], "protocol": protocol} for protocol in ("tcp", "udp")]
    bench.make(a=veth(publish=publish), b=veth(*out))
    with bound(outside, family, "udp", 4000) as peer, bound(bench.path("b"), family, "udp", 53) as sender:
        peer.settimeout(5)
        sender.sendto(b"?", (far, 4000))
        assert peer.recvfrom(10)[1][1] in OUTWARDS
    with listen(outside, far, 4000) as server, bound(bench.path("b"), family, "tcp", 443) as client:
        client.settimeout(5)
        client.connect((far, 4000))
        accepted, peer_address = server.accept()
        accepted.close()
        assert peer_address[1] in OUTWARDS


# One for each test: the kernel tracks a connection for longer than a test takes.
USERS_PORTS = itertools.count(4321)


@contextlib.contextmanager
def silent(path: Path) -> Iterator[None]:
    """Prevent the host at *path* from sending refusals (TCP resets), like a host behind a firewall."""
    inside = f"ip netns exec {path.name} nft"
    run(f"{inside} add table inet silent")
    run(f"{inside} add chain inet silent out {{ type filter hook output priority 0; }}")
    run(f"{inside} add rule inet silent out tcp flags & rst == rst drop")
    try:
        yield
    finally:
        run(f"{inside} delete table inet silent")


def served(bench: Bench, outside: Path, family: str, protocol: str, port: int) -> str:
    """Send a request from a fixed port of a user outside; return the first answer, which is the user's address."""
    near, _ = WIRE[family]
    with bound(outside, family, protocol, port) as user, serving(bench.path("a"), INSIDE):
        user.settimeout(1 if protocol == "udp" else 5)
        for _ in range(5):  # nothing repeats a datagram that a busy kernel loses
            try:
                user.connect((near, OUTER[protocol]))
                user.send(b"?")
                return user.recv(100).decode()
            except TimeoutError as err:
                answer = repr(err)
                if protocol == "tcp":
                    break
            except OSError as err:
                return repr(err)
    return answer


def bound(path: Path | None, family: str, protocol: str, port: int) -> socket.socket:
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]

    def make() -> socket.socket:
        made = socket.socket(_KIND[family], kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        return made

    return within(path, make)


@families
def test_no_other_port_or_address_is_withheld_nor_loopback(bench: Bench, outside: Path, family: str) -> None:
    assert outside
    bench.make(a=veth(publish=["[fd00:198:18::9]:5353:53/udp", "5354:53/udp"]))
    for port, passes in ((5353, True), (5354, False)):
        with bound(None, family, "udp", port) as own, bound(None, family, "udp", 4000) as peer:
            own.sendto(b"own", (LOOPBACK[family], 4000))
            assert peer.recv(10) == b"own"
            with contextlib.nullcontext() if passes else pytest.raises(PermissionError):
                own.sendto(b"own", (WIRE[family][1], 4000))


@families
def test_who_floods_a_published_port_does_not_silence_the_environment(bench: Bench, outside: Path, family: str) -> None:
    out = {"direction": "out", "cidr": ANY[family], "protocol": "udp"}
    bench.make(a=veth(out, publish=SERVED, connections=2))
    near, far = WIRE[family]
    with listen(bench.path("a"), bench.address("a", family), 8443):
        with connected(outside, near, 443), connected(outside, near, 443):
            assert connect(outside, near, 443, tries=1) is None, "published connections are bounded"
            assert delivered(bench.path("a"), outside, far), "and the environment's own aren't among them"


def test_state_is_complete_and_repaired(bench: Bench, outside: Path) -> None:
    before = snapshot()
    desired = bench.make(a=veth(publish=SERVED))
    assert not bench.plan(desired).steps
    assert bench.kind.list()["a"]["publish"] == SERVED
    assert bench.kind.inspect("a")["declared"]["publish"] == SERVED
    for spoil in ("flush chain inet netspace lead", "delete element inet netspace published_ipv4 { tcp . 443 }"):
        run(f"nft {spoil}")
        (step,) = bench.plan(desired).steps
        assert step.changes["table"]["old"] == "changed by hand"
        bench.apply(desired)
        assert not bench.plan(desired).steps
    with serving(bench.path("a"), INSIDE):
        assert answered(outside, WIRE["ipv4"][0], 443, "tcp")
    plan = bench.apply(bench.desired(a=veth(publish=["443:8444"])))
    changed = next(step.changes for step in plan.steps if step.name == "a")
    assert changed == {"publish": {"old": SERVED, "new": ["443:8444"]}}
    run("nft delete table inet netspace")
    with listen(None, WIRE["ipv4"][0], 443):  # of a program that was faster at boot, which the next change tells
        assert bench.kind.restore().ok
    assert not bench.plan(bench.desired(a=veth(publish=["443:8444"]))).steps
    bench.make(a=veth())
    assert "published" not in run("nft list ruleset")
    bench.remove_all()
    before["namespaces"] = [name for name in before["namespaces"] if "netspace" not in name]
    assert snapshot() == before


@pytest.mark.parametrize(
    ("address", "protocol", "publish", "refused"),
    [
        ("", "tcp", "443:8443", True),
        ("", "udp", "443:8443/udp", True),
        ("", "tcp", "443:8443/udp", False),
        ("", "tcp", "444:443", False),
        ("127.0.0.1", "tcp", "443:8443", True),
        ("::1", "udp", "443:8443/udp", True),
        ("", "tcp", "198.18.0.1:443:8443", True),
        ("198.18.0.1", "tcp", "198.18.0.1:443:8443", True),
        ("198.18.0.1", "tcp", "198.18.0.9:443:8443", False),
        ("fd00:198:18::1", "udp", "[fd00:198:18::1]:443:8443/udp", True),
    ],
)
def test_a_port_that_a_program_has_is_refused(
    bench: Bench, outside: Path, address: str, protocol: str, publish: str, *, refused: bool
) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(_KIND["ipv6" if ":" in address else "ipv4"], kind) as one:
        one.bind((address, 443))
        if protocol == "tcp":
            one.listen()
        plan = bench.plan(bench.desired(a=veth(publish=[publish]), b=veth(publish=["80:80"])))
        said = {refusal.name: refusal.message for refusal in plan.refusals}
        assert ("a" in said) == refused
        if refused:
            assert "can't be published: " in said["a"]
            assert "443/" in said["a"]
            assert f"(process {os.getpid()}) has it; end that program" in said["a"]
        assert "b" in {step.name for step in plan.steps}, "the others are planned all the same"


def test_its_own_ports_are_looked_for_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that publishes no new port doesn't read the host's sockets."""
    desired = bench.make(a=veth(publish=SERVED))
    monkeypatch.setattr(sockets, "listeners", lambda *_: pytest.fail("sockets were read"))
    assert not bench.plan(desired).steps
    moved = bench.plan(bench.desired(a=veth(), b=veth(publish=SERVED)))
    assert not moved.refusals


def test_a_port_of_one_that_is_applied_already_is_refused(bench: Bench) -> None:
    bench.make(a=veth(publish=SERVED))
    (refusal,) = bench.plan(bench.desired(b=veth(publish=["198.18.0.1:443:80"]))).refusals
    assert refusal.name == "b"
    assert "a:interface:publish:0 already uses 443/tcp" in refusal.message
    assert not bench.plan(bench.desired(a=veth(), b=veth(publish=["198.18.0.1:443:80"]))).refusals


def test_check_and_dry_run_and_apply_say_the_same_and_the_others_go_on(bench: Bench) -> None:
    def one(*led: str) -> dict[str, object]:
        return {"image": "dir:/nowhere", "command": ["/bin/true"], "interface": veth(publish=led)}

    declared = parse.declaration({"environments": {"a": one("443:8443"), "b": one("80:80")}})
    host = Host(bench.layout)
    with listen(None, "127.0.0.1", 443):
        said = [problem.message for problem in host.check(declared) if problem.path.endswith("a:interface")]
        dry = host.converge_interfaces(declared, whole=True, test=True)
        made = host.converge_interfaces(declared, whole=True)
    assert len(said) == 1
    assert [refusal.message for refusal in dry.plan.refusals] == said
    assert [refusal.message for refusal in made.plan.refusals] == said
    assert set(bench.kind.list()) == {"b"}
    assert not made.failures
    assert host.converge_interfaces(declared, whole=True).ok
    assert bench.kind.list()["a"]["publish"] == ["443:8443"]
