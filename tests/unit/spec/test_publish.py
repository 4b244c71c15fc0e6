"""Published ports: their forms, refusals with their paths, and conflicts between two."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.interface import kinds
from netspace.spec import parse, publish, trust
from netspace.spec.publish import HostPort, Publication

PORTS = st.integers(1, 65535)
ADDRESSES = st.one_of(
    st.just(""),
    st.ip_addresses(v=4, network="198.51.100.0/24").map(str),
    st.ip_addresses(v=6, network="2001:db8::/32").map(str),
)
HOST_PORTS = st.builds(HostPort, st.sampled_from(["tcp", "udp"]), st.integers(1, 3), st.sampled_from(["", "a", "b"]))


def written(address: str, port: int, inside: int, ending: str) -> str:
    before = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
    return f"{before}{port}:{inside}{ending}"


@given(ADDRESSES, PORTS, PORTS, st.sampled_from(["", "/tcp", "/udp"]))
def test_it_is_read_as_it_is_written_and_has_one_form(address: str, port: int, inside: int, ending: str) -> None:
    found = Publication.parse(written(address, port, inside, ending))
    assert found.host == HostPort("udp" if ending == "/udp" else "tcp", port, address)
    assert found.inside == inside
    assert Publication.parse(str(found)) == found == found.removesuffix("/tcp")
    assert found.families == (("ipv4", "ipv6") if not address else (f"ipv{ipaddress.ip_address(address).version}",))


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[0-9\[\]:./a-f tcpud-]{0,40}", fullmatch=True)))
def test_anything_else_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        found = Publication.parse(text)
    except ValueError:
        return
    assert 1 <= found.host.port <= 65535
    assert 1 <= found.inside <= 65535
    assert Publication.parse(str(found)) == found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3233, "expected text in quotes"),  # YAML's 53:53
        (None, "expected text in quotes"),
        ("443", "expected '443:8443'"),
        ("443:8443/sctp", "expected '443:8443'"),
        ("443:8443 ", "expected '443:8443'"),
        ("443:8443\n", "expected '443:8443'"),
        ("٤٤٣:8443", "expected '443:8443'"),
        ("8000-8010:80", "expected '443:8443'"),
        ("eth0:443:8443", "expected '443:8443'"),
        ("2001:db8::1:443:8443", "expected '443:8443'"),
        ("[198.51.100.1]:443:8443", "brackets"),
        ("[fe80::1%eth0]:443:8443", "expected '443:8443'"),
        ("0:80", "0 is out of 1..65535"),
        ("80:65536", "65536 is out of 1..65535"),
        ("198.51.100.999:80:80", "198.51.100.999"),
        ("0.0.0.0:80:80", "leave it out"),
        ("[::]:80:80", "leave it out"),
        ("127.0.0.1:80:80", "loopback"),
        ("[::1]:80:80", "loopback"),
        ("224.0.0.1:80:80", "other hosts can't reach this kind"),
        ("255.255.255.255:80:80", "other hosts can't reach this kind"),
        ("[fe80::1]:80:80", "other hosts can't reach this kind"),
        ("[::ffff:198.51.100.1]:80:80", "other hosts can't reach this kind"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(value: object, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse.interface({"kind": "veth", "publish": ["80:80", value]}, "netspace:environments:web:interface")
    (problem,) = refused.value.problems
    assert problem.path == "netspace:environments:web:interface:publish:1"
    assert said in problem.message


def test_it_is_for_kinds_that_the_host_routes_to() -> None:
    for name, module in kinds.modules().items():
        if module.FILTER == "host":
            spec = parse.interface({"kind": name, "publish": ["80:80/tcp"]})
            assert publish.published(spec) == ("80:80",)
            assert parse.interface(parse.encode(spec)) == spec
            continue
        with pytest.raises(SpecError) as refused:
            parse.interface({"kind": name, "publish": []})
        (problem,) = refused.value.problems
        assert problem.path == "interface:publish"
        assert f"doesn't route to an interface of kind {name}" in problem.message
        assert "use kind veth or tap" in problem.message


def test_there_is_a_most() -> None:
    many = [f"{port}:80" for port in range(1, publish.MOST + 2)]
    assert parse.interface({"kind": "veth", "publish": many[:-1]})
    with pytest.raises(SpecError, match=f"interface:publish: more than {publish.MOST}"):
        parse.interface({"kind": "veth", "publish": many})


@given(HOST_PORTS, HOST_PORTS)
def test_two_overlap_where_a_packet_could_be_for_both(one: HostPort, other: HostPort) -> None:
    packets = [HostPort(*found) for found in itertools.product(("tcp", "udp"), (1, 2, 3), ("a", "b", "c"))]

    def takes(port: HostPort, packet: HostPort) -> bool:
        return port[:2] == packet[:2] and port.address in ("", packet.address)

    assert one.overlaps(other) == any(takes(one, packet) and takes(other, packet) for packet in packets)
    assert one.overlaps(other) == other.overlaps(one)


CHOICES = st.tuples(
    st.sampled_from(["", "198.51.100.1", "198.51.100.2", "2001:db8::1"]),
    st.sampled_from([443, 444]),
    st.sampled_from([80, 81]),
    st.sampled_from(["", "/udp"]),
).map(lambda parts: written(*parts))


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(CHOICES, max_size=3), max_size=3))
def test_a_declaration_is_accepted_where_no_two_overlap(declared: dict[str, list[str]]) -> None:
    specs = {name: parse.interface({"kind": "veth", "publish": listed}) for name, listed in declared.items()}
    every = [one.host for spec in specs.values() for one in publish.published(spec)]
    clash = any(one.overlaps(other) for one, other in itertools.combinations(every, 2))
    assert bool(publish.conflicts(specs)) == clash


def whole(**interfaces: Any) -> dict[str, Any]:
    found = {name: {"image": "dir:/x", "interface": one} for name, one in interfaces.items()}
    return {"environments": found}


def veth(*listed: str) -> dict[str, Any]:
    return {"kind": "veth", "publish": list(listed)}


def problems(data: dict[str, Any]) -> dict[str, str]:
    try:
        parse.declaration(data)
    except SpecError as err:
        return {problem.path: problem.message for problem in err.problems}
    return {}


def test_both_paths_are_named() -> None:
    said = problems(whole(web=veth("80:80", "443:8443"), shop=veth("198.51.100.1:443:80")))
    assert said == {
        "netspace:environments:shop:interface:publish:0": (
            "198.51.100.1:443/tcp: netspace:environments:web:interface:publish:1 already uses 443/tcp; "
            "choose another port"
        )
    }
    assert "netspace:environments:web:interface:publish:1" in problems(whole(web=veth("80:80", "80:81")))
    assert not problems(whole(web=veth("198.51.100.1:443:80"), shop=veth("198.51.100.2:443:80", "443:80/udp")))


@pytest.mark.parametrize(
    ("broker", "listed", "of"),
    [
        ({"port": 5682}, "5682:80", "port"),
        ({}, "15682:80", "management_port"),
        ({}, "25682:80", "distribution_port"),
        ({"listen": "198.51.100.1:5671"}, "5671:80", "listen"),
        ({"listen": "198.51.100.1:5671"}, "198.51.100.1:5671:80", "listen"),
        ({"listen": "198.51.100.1:5671"}, "198.51.100.2:5671:80", ""),
        ({"listen": "198.51.100.1:5671"}, "5671:80/udp", ""),
        ({"listen": "[2001:db8::1]:5671"}, "[2001:db8:0::1]:5671:80", "listen"),
        ({}, "198.51.100.1:5682:80", ""),
    ],
)
def test_the_brokers_ports_are_its_own(broker: dict[str, Any], listed: str, of: str) -> None:
    named = {"host": "h1", "trust_domain": "h1.example.org", "authority": "/etc/a"} if "listen" in broker else {}
    said = problems({**whole(web=veth(listed)), "broker": {"kind": "local", **broker, **named}})
    assert bool(said) == bool(of)
    if of:
        assert f"netspace:broker:{of} already uses" in said["netspace:environments:web:interface:publish:0"]


def test_tunnel_that_comes_later_takes_no_published_port() -> None:
    there = {"web": parse.interface(veth("21820:80/udp")), "db": parse.interface(veth("21820:80"))}
    key = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
    tunnel = {"kind": "wireguard", "listen_port": 21820, "ipv4": "10.7.0.1/24"}
    new = {"far": parse.interface({**tunnel, "peers": [{"public_key": key, "allowed_ips": ["10.7.0.0/24"]}]})}
    told = publish.listening(new, there)
    assert told == {"far": "21820/udp: web already publishes it as 21820/udp; choose another port"}
    assert publish.listening(new, {"db": there["db"]}) == {}


def test_ports_of_tunnels_are_their_own() -> None:
    key = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
    peers = [{"public_key": key, "allowed_ips": ["10.7.0.0/24"]}]
    tunnel = {"kind": "wireguard", "listen_port": 21820, "ipv4": "10.7.0.1/24", "peers": peers}
    where = "netspace:environments:web:interface:publish:0"
    said = problems(whole(web=veth("21820:80/udp"), far=tunnel))
    assert "netspace:environments:far:interface:listen_port already uses 21820/udp" in said[where]
    wide = {"kind": "vxlan", "id": 7, "remote": "198.51.100.2", "ipv4": "10.9.0.7/24"}
    assert where in problems(whole(web=veth("4789:80/udp"), far=wide))
    assert not problems(whole(web=veth("4789:80", "21820:80"), far=wide, farther=tunnel))


def test_source_ports_of_connections_outwards_cannot_be_published() -> None:
    said = problems(whole(web=veth("32767:80", "61000:80", "32768:80", "198.51.100.1:60999:80/udp")))
    reason = "ports 32768 to 60999 are the source ports of connections outwards; publish another"
    assert said == {
        "netspace:environments:web:interface:publish:2": f"32768/tcp: {reason}",
        "netspace:environments:web:interface:publish:3": f"198.51.100.1:60999/udp: {reason}",
    }
    assert not problems(whole(web=veth("443:40000"))), "inside is another matter"


def test_while_trust_withholds_it_publications_only_get_fewer() -> None:
    there = parse.interface(veth("443:8443", "80:80"))
    declared = parse.interface(veth("80:80", "22:22"))
    assert publish.published(trust.narrowed(there, declared)) == ("80:80",)
    assert publish.published(trust.narrowed(declared, parse.interface({"kind": "none"}))) == ()
