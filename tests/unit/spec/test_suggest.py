"""A suggestion permits exactly the recorded refusals, is accepted by the parser, and marks risky permissions."""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Record
from netspace.environment.refusals import reading
from netspace.host import called
from netspace.host import refused as work
from netspace.link.broker import refusals as broker
from netspace.spec import checks, parse, suggest
from netspace.spec.suggest import Refused
from netspace.spec.types import Allow, Cidr, Link

PEERS = st.sampled_from(["198.51.100.7", "2001:db8::7", "10.203.0.1", "169.254.169.254", "2001:db8:a:b:c:d:e:f"])
PARTS = st.builds(
    lambda direction, peer, protocol, port: part(direction, peer, protocol, None if protocol == "icmp" else port),
    st.sampled_from(["in", "out"]),
    PEERS,
    st.sampled_from(["tcp", "udp", "icmp"]),
    st.one_of(st.integers(440, 447), st.integers(1, 65535)),
)
NOW = 1_800_000_000.0


def part(direction: str, peer: str, protocol: str = "tcp", port: int | None = 443) -> Allow:
    return Allow(direction=direction, cidr=Cidr.parse(peer), protocol=protocol, port=port)  # type: ignore[arg-type]


def seen(one: Allow, count: int = 1) -> Refused:
    return Refused("packets", "it", count, NOW, NOW + 60, one)


def declared(text: str, *allow: dict[str, Any]) -> dict[str, Any]:
    """Return the declaration of an environment with an image, extended by the suggestion in *text*."""
    whole: dict[str, Any] = {"environments": {"web": {"image": "dir:/srv/web"}}}
    found = yaml.safe_load(text)
    if found is not None:
        more = found["netspace"].get("environments", {}).get("web", {})
        whole["environments"]["web"] |= more
        whole["links"] = found["netspace"].get("links", [])
    return whole


VETH = parse.interface({"kind": "veth", "allow": [{"direction": "out", "name": "deb.example.org", "port": 443}]})


@given(st.lists(PARTS, max_size=30, unique=True))
def test_suggested_rules_permit_exactly_what_was_seen(wanted: list[Allow]) -> None:
    rules = [one.part for one in suggest.rules(map(seen, wanted))]
    interface = parse.interface({"kind": "veth", "allow": [parse.encode(one) for one in rules]})
    assert all(suggest.permitted(one, interface) for one in wanted)
    known = {(one.direction, str(one.cidr), one.protocol, one.port) for one in wanted}
    for one in wanted:
        for way in ("in", "out"):
            for protocol in ("tcp", "udp", "icmp"):
                near = {None} if protocol == "icmp" else {(one.port or 1) - 1, one.port or 1, (one.port or 1) + 1}
                for port in near - {0, 65536}:
                    assert one.cidr is not None
                    tried = part(way, str(one.cidr), protocol, port)
                    expected = (way, str(one.cidr), protocol, port) in known
                    assert suggest.permitted(tried, interface) is expected
    assert all(rule.cidr is not None and rule.cidr.network.num_addresses == 1 for rule in rules)


@given(st.lists(PARTS, max_size=30, unique=True), st.booleans())
def test_suggestion_is_a_declaration_of_80_columns(wanted: list[Allow], linked: bool) -> None:
    refused = [seen(one) for one in wanted]
    if linked:
        refused.append(Refused("messages", "it", 3, NOW, NOW, Link(source="web", target="orders")))
    text = suggest.text("web", VETH, {"10.203.0.1"}, refused, {"files": "it can't be seen " * 9})
    assert max(map(len, text.splitlines())) <= suggest.WIDTH
    whole = declared(text)
    if linked:
        whole["environments"]["orders"] = {"image": "dir:/srv/orders"}
    read = parse.declaration(whole)
    interface = read.environments["web"].interface
    assert all(suggest.permitted(one, interface) for one in wanted)
    if wanted:
        assert VETH.allow[0] in interface.allow, "a list replaces another: what is there must be in it"
        assert len(interface.allow) == len(suggest.rules(refused)) + 1
    assert [(one.source, one.target) for one in read.links] == ([("web", "orders")] if linked else [])


@given(st.lists(PARTS, max_size=30, unique=True))
def test_applied_suggestion_leaves_nothing_to_suggest(wanted: list[Allow]) -> None:
    refused = [seen(one) for one in wanted]
    whole = declared(suggest.text("web", VETH, (), refused, {}))
    interface = parse.declaration(whole).environments["web"].interface
    assert yaml.safe_load(suggest.text("web", interface, (), refused, {})) is None or not wanted


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (part("out", "198.51.100.7"), "private"),  # a block for documentation isn't global
        (part("out", "1.1.1.1"), ""),
        (part("in", "1.1.1.1"), "others may open"),
        (part("out", "10.203.0.1", port=80), "the host itself"),
        (part("out", "169.254.169.254", port=80), "metadata"),
        (part("out", "1.1.1.1", port=22), "SSH"),
        (part("out", "1.1.1.1", "udp", 53), "carry data out"),
        (part("out", "1.1.1.1", "icmp", None), "all its messages"),
        (part("out", "224.0.0.251", "udp", 5353), "a group"),
        (part("out", "fe80::1"), "metadata"),
    ],
)
def test_risky_line_is_marked_with_its_reason(one: Allow, word: str) -> None:
    text = suggest.text("web", VETH, {"10.203.0.1"}, [seen(one)], {})
    assert ("RISKY" in text) is bool(word)
    assert word in " ".join(text.replace("#", " ").split())


def test_scan_is_marked() -> None:
    ports = [seen(part("out", "1.1.1.1", port=port)) for port in range(1000, 1060, 2)]
    assert "30 ports of this peer were tried: a scan?" in suggest.text("web", VETH, (), ports, {})


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x0b", "\x1b[2J"])
def test_name_that_a_program_chose_ends_no_comment(end: str) -> None:
    name = f"publish: no exchange 'x{end}netspace: {{environments: {{}}}}'"
    text = suggest.text("web", VETH, (), [Refused("messages", name, 1, NOW, NOW, why="no link permits it")], {})
    assert yaml.safe_load(text) is None
    assert all(line.startswith("# ") and line.isprintable() for line in text.splitlines())


class Told(NamedTuple):
    """Refusals that a program caused, with the texts that it chose, and the lines that would permit them."""

    refused: list[Refused]
    rules: set[tuple[object, ...]]
    settings: set[str]


def caused(paths: Sequence[bytes], names: Sequence[str], packets: Sequence[Allow]) -> Told:
    """Return the refusals of a program that opens these paths, and sends to these exchanges and peers."""
    spec = parse.environment("web", {"image": "dir:/srv/web", "audit": True, "read_only": True})
    about = Record(spec, "running", 1, Image("", "", Defaults()), "", "")
    said = [path.decode("utf-8", "backslashreplace") for path in paths]
    opens = [reading.Refusal("kernel", "openat", (0,) * 6, path, errno.EROFS, 1, NOW, NOW, True) for path in said]
    files = [called._told(one, about) for one in opens]
    plain = [re.sub(r"[^ -~]", "?", name) for name in names]  # as the broker's plugin writes them
    sends = [f"operation basic.publish caused a channel exception not_found: no exchange '{name}'" for name in plain]
    times = {"times": 1, "first": NOW, "last": NOW}
    kept = broker.decoded({"value": {f"{text} in vhost 'v'"[:240]: times for text in sends}})
    return Told(
        [*files, *(work._message("web", one, {"web", "orders"}) for one in kept), *map(seen, packets)],
        {(one.direction, str(one.cidr), one.protocol, one.port) for one in packets},
        {one.part.key for one in files if isinstance(one.part, suggest.Setting)},
    )


def opened(text: str) -> tuple[set[tuple[object, ...]], set[str], list[Any]]:
    """Return what a suggestion permits: each port of each rule, the other settings, and the links."""
    found = (yaml.safe_load(text) or {}).get("netspace", {})
    assert found.keys() <= {"environments", "links"}
    web = found.get("environments", {"web": {}})["web"]
    rules = set()
    for rule in web.get("interface", {}).get("allow", [])[1:]:
        assert rule.keys() <= {"direction", "cidr", "protocol", "port"}
        first, last = checks.ports(rule["port"]) if "port" in rule else (None, None)
        for port in [None] if first is None else range(first, last + 1):
            rules.add((rule["direction"], f"{ipaddress.ip_network(rule['cidr'])}", rule["protocol"], port))
    return rules, web.keys() - {"interface"}, found.get("links", [])


LURES = st.sampled_from(
    [
        *("' in vhost 'v", "'\nnetspace: {links: []}", "# RISKY: ", ": once, 2026-11-30", "seccomp: standard", "\x85"),
        *("link.web.orders", "\x1b[2J", "\u202e", "\u5bbd" * 90, "\u0301" * 90, "\u05d0", "x" * 300, " " * 90, "- {}"),
    ]
)
CHOSEN = st.lists(LURES | st.text(max_size=20), max_size=6).map("".join)
OPENED = CHOSEN.map(lambda text: text.encode("utf-8", "surrogatepass")[:127]) | st.binary(max_size=127)
OURS = ("web was", "web: nothing", "openat", "basic.publish:", "RISKY:", "once,", "there now", "add these", "No line")


@settings(max_examples=50)
@given(st.lists(OPENED, max_size=4), st.lists(CHOSEN, max_size=4), st.lists(PARTS, max_size=4, unique=True))
def test_attacker_gets_no_more_suggested_than_was_refused(
    paths: list[bytes], names: list[str], packets: list[Allow]
) -> None:
    """A program chooses all texts. No line permits more than was refused, and no text looks like a line of ours."""
    told = caused(paths, names, packets)
    text = suggest.text("web", VETH, {"10.203.0.1"}, told.refused, {})
    assert text.isascii() and all(line.isprintable() and len(line) <= suggest.WIDTH for line in text.splitlines())
    assert opened(text)[:2] == (told.rules, told.settings)
    links = opened(text)[2]
    assert links in ([], [{"from": "web", "to": "orders", "pattern": "send"}])
    assert not links or any("link.web.orders" in name for name in names)
    for line in text.splitlines():  # the program's texts are words within our lines; only continuations begin with them
        _, sign, said = line.partition("# ")
        counted = re.match(r"(and )?\d+ (times|more)", said)
        assert not sign or said.startswith(("  ", *OURS)) or counted, line


def test_scan_of_many_peers_is_marked() -> None:
    peers = [seen(part("out", f"1.1.1.{last}", port=80)) for last in range(1, 31)]
    assert "the same was tried at 30 peers: a scan?" in suggest.text("web", VETH, (), peers, {})
    assert "a scan?" not in suggest.text("web", VETH, (), peers[:16], {})


WORDS = [
    *("y", "n", "yes", "no", "on", "off", "true", "false", "null", "None", "~", "=", "<<", "-", "a", "b-1"),
    *("1", "0", "123", "1e5", "1_000", "0x1f", "0b1", "0o7", "017", "1.5", ".inf", ".nan", "12:30:45", "2001-01-01"),
]
SPELLINGS = st.sampled_from(WORDS).flatmap(lambda word: st.sampled_from([word, word.upper(), word.capitalize()]))
NAMES = SPELLINGS | st.from_regex(r"[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?", fullmatch=True)
HOSTS = st.from_regex(r"(?:\*\.)?[a-z0-9]{1,5}(?:\.[a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(NAMES, NAMES, HOSTS | SPELLINGS)
@example("no", "1e5", "1.5")
@example("123", "on", "*.example.org")
def test_names_are_read_as_they_are(name: str, other: str, host: str) -> None:
    rule = msgspec.structs.replace(VETH.allow[0], name=host)
    interface = msgspec.structs.replace(VETH, allow=(rule,))
    asked = Refused("messages", "it", 1, NOW, NOW, Link(source=name, target=other))
    read = yaml.safe_load(suggest.text(name, interface, (), [seen(part("out", "1.1.1.1")), asked], {}))["netspace"]
    assert list(read["environments"]) == [name]
    assert read["environments"][name]["interface"]["allow"][0]["name"] == host
    assert read["links"] == [{"from": name, "to": other, "pattern": "send"}]


def test_what_nothing_permits_is_a_comment() -> None:
    text = suggest.text("web", VETH, (), [Refused("packets", "out: 132", 7, NOW, NOW, why="no rule can")], {})
    assert "out: 132: 7 times" in text
    assert yaml.safe_load(text) is None


def setting(what: str, **more: Any) -> Refused:
    kind: suggest.Kind = "files" if "/" in what else "system calls"
    return Refused(
        kind, what, 3, NOW, NOW + 60, suggest.Setting("seccomp", "standard", "it opens more")._replace(**more)
    )


def test_settings_are_suggested_once_with_their_risk() -> None:
    found = [setting("io_setup"), setting("msgget"), setting("openat \33[31m/x", key="read_only", value="false")]
    text = suggest.text("web", None, (), found, {})
    assert declared(text)["environments"]["web"] == {"image": "dir:/srv/web", "seccomp": "standard", "read_only": False}
    assert text.count("# RISKY: it opens more") == 2
    assert all(f"# {one}: 3 times" in text for one in ("io_setup", "msgget"))
    assert "\33" not in text
