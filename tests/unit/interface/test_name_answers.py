"""Answers about names, also hostile ones: which addresses count, and for how long."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.interface.firewall import counting, host_rules
from netspace.interface.match import name_set
from netspace.interface.names import answers, record, sets
from netspace.interface.names.answers import CEILING, FLOOR, STALE, Known, Own
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.spec import checks, parse, reach
from netspace.spec.types import ADDRESSES_OF_NAME, EVERYWHERE, Filtered

NOW = 1_800_000_000.0
NAME = "deb.example.org"
WHOLE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ttls = st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 59, 60, 86400, 2**31 - 1]))
keys = st.sampled_from([(NAME, "ipv4"), (NAME, "ipv6")])


def spec(**rule: object) -> Filtered:
    parsed = parse.interface({"kind": "veth", "allow": [{"direction": "out", "name": NAME, **rule}]})
    assert isinstance(parsed, Filtered)
    return parsed


@pytest.mark.parametrize(
    ("address", "network", "counts"),
    [
        ("151.101.2.132", "0.0.0.0/0", True),
        ("2a04:4e42::644", "::/0", True),
        ("151.101.2.132", "151.101.0.0/16", True),
        ("151.102.2.132", "151.101.0.0/16", False),
        ("10.1.2.3", "0.0.0.0/0", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.0.0/16", True),
        ("10.1.2.3", "8.0.0.0/5", False),  # it covers more than what is private
        ("169.254.169.254", "0.0.0.0/0", False),
        ("169.254.169.254", "169.254.169.254/32", True),
        ("127.0.0.1", "0.0.0.0/0", False),
        ("127.0.0.1", "127.0.0.0/8", False),
        ("0.0.0.0", "0.0.0.0/0", False),
        ("224.0.0.1", "0.0.0.0/0", False),
        ("255.255.255.255", "255.255.255.255/32", False),
        ("100.64.0.1", "0.0.0.0/0", False),
        ("192.0.2.1", "0.0.0.0/0", False),
        ("::1", "::/0", False),
        ("::1", "::1/128", False),
        ("::ffff:10.0.0.1", "::/0", False),
        ("::ffff:8.8.8.8", "::/0", False),
        ("64:ff9b::a00:1", "::/0", False),
        ("2002:a00:1::", "::/0", False),
        ("2001:0:1::1", "::/0", False),
        ("fd00:ec2::254", "::/0", False),
        ("fd00:ec2::254", "fd00:ec2::/32", True),
        ("fe80::1", "::/0", False),
        ("fec0::1", "::/0", False),
        ("ff02::1", "::/0", False),
    ],
)
def test_address_counts_only_where_it_may_be_meant(address: str, network: str, counts: bool) -> None:
    assert (answers.refusal(address, ipaddress.ip_network(network), Own()) == "") == counts


@pytest.mark.parametrize(
    ("own", "address", "network", "counts"),
    [
        ("151.101.2.7/24", "151.101.2.132", "0.0.0.0/0", False),
        ("151.101.2.7/24", "151.101.3.132", "0.0.0.0/0", True),
        ("151.101.2.7/24", "151.101.2.132", "151.101.0.0/16", False),
        ("151.101.2.7/24", "151.101.2.132", "151.101.2.0/24", True),
        ("151.101.2.7/24", "151.101.2.132", "151.101.2.132/32", True),
        ("151.101.2.7/24", "151.101.2.7", "151.101.2.0/24", False),
        ("151.101.2.7/32", "151.101.2.132", "0.0.0.0/0", True),
        ("2a04:4e42::7/64", "2a04:4e42::644", "::/0", False),
        ("2a04:4e42::7/64", "2a04:4e42:1::644", "::/0", True),
        ("2a04:4e42::7/64", "2a04:4e42::644", "2a04:4e42::/64", True),
        ("2a04:4e42::7/128", "2a04:4e42::644", "::/0", True),
        ("10.1.2.7/24", "10.1.2.132", "10.0.0.0/8", False),
        ("10.1.2.7/24", "10.9.2.132", "10.0.0.0/8", True),
    ],
)
def test_neighbour_of_the_host_counts_only_if_meant(own: str, address: str, network: str, counts: bool) -> None:
    said = answers.refusal(address, ipaddress.ip_network(network), Own.of([own]))
    assert (said == "") == counts and ("this host's" in said) == (not counts)


@given(addresses)
def test_address_that_is_not_public_never_counts_unasked(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if not answers.refusal(str(address), WHOLE[address.version], Own()):
        assert address.is_global and not address.is_multicast and not address.is_private and not address.is_loopback
        assert getattr(address, "ipv4_mapped", None) is None and getattr(address, "sixtofour", None) is None
        assert answers.refusal(str(address), WHOLE[address.version], Own.of([str(address)])) == "is this host's own"


@given(st.lists(st.tuples(st.dictionaries(addresses.map(str), ttls, max_size=answers.MOST), st.integers(0, 10**6))))
def test_answers_stay_within_their_bounds(history: list[tuple[dict[str, int], int]]) -> None:
    known, now = Known(), NOW
    for answer, later in history:
        now += later
        before = known
        known = answers.answered(known, {one: float(ttl) for one, ttl in answer.items()}, now)
        assert len(known.until) <= ADDRESSES_OF_NAME and set(known.current) == set(answer)
        assert all(now + FLOOR <= known.until[one] <= now + CEILING for one in answer)
        assert now + FLOOR <= known.due <= now + CEILING
        # What an earlier answer gave keeps its own end, and nothing else is there.
        assert all(known.until[one] == before.until[one] > now for one in known.until.keys() - answer.keys())
    for seconds in (0.0, CEILING, CEILING + STALE, CEILING + STALE + 1):
        there = answers.ends(known, now + seconds)
        assert all(end <= now + CEILING + STALE for end in there.values())
    assert not answers.ends(known, now + CEILING + STALE)


@given(st.dictionaries(addresses.map(str), ttls, min_size=1, max_size=5), st.lists(st.integers(1, 4000), max_size=60))
def test_failures_keep_the_last_answer_for_a_bounded_time(answer: dict[str, int], pauses: list[int]) -> None:
    first = known = answers.answered(Known(), {one: float(ttl) for one, ttl in answer.items()}, NOW)
    now = NOW
    for pause in pauses:
        now += pause
        known = answers.failed(known, "name-unanswered", "no resolver answers", now)
        assert answers.ends(known, now) == answers.ends(first, now)
        assert now < known.due <= now + answers.SLOWEST
        assert answers.problem(NAME, {"ipv4": known}, now)
    assert not answers.ends(known, NOW + CEILING + STALE)


@pytest.mark.parametrize("code", ["name-absent", "name-refused"])
def test_answer_of_no_use_ends_the_last_ones_stay(code: answers.Code) -> None:
    known = answers.answered(Known(), {"151.101.2.132": 300.0}, NOW)
    known = answers.failed(known, code, "said so", NOW + 100)
    assert answers.ends(known, NOW + 299) == {"151.101.2.132": NOW + 300}, "the time to live holds"
    assert not answers.ends(known, NOW + 300)
    assert answers.code({"ipv4": known}) == code and "said so" in answers.problem(NAME, {"ipv4": known}, NOW + 300)
    silent = answers.failed(known, "name-unanswered", "silent", NOW + 200)
    assert not answers.ends(silent, NOW + 300), "nor does silence afterwards prolong it"


def test_absent_name_is_asked_again_like_an_empty_answer() -> None:
    known = Known()
    for _ in range(5):
        known = answers.failed(known, "name-absent", "no such name", NOW)
    assert known.due == NOW + FLOOR and known.failures == 0


@given(ttls, st.floats(-(10.0**9), 10.0**9))
def test_clock_that_jumps_neither_prolongs_nor_delays(ttl: int, jump: float) -> None:
    known = answers.answered(Known(), {"151.101.2.132": float(ttl)}, NOW)
    now = NOW + jump
    assert all(end <= now + CEILING + STALE for end in answers.ends(known, now).values())
    assert answers.overdue(known, now) or known.due <= now + CEILING


def test_answer_without_address_is_no_address() -> None:
    known = {"ipv4": answers.answered(Known(), {}, NOW), "ipv6": answers.answered(Known(), {}, NOW)}
    assert answers.code(known) == "name-absent" and "it has no address" in answers.problem(NAME, known, NOW)
    one = {**known, "ipv4": answers.answered(Known(), {"151.101.2.132": 300.0}, NOW)}
    assert (answers.code(one), answers.problem(NAME, one, NOW)) == ("", "")


def test_unasked_name_is_told_without_a_code() -> None:
    assert answers.code({}) == "" and "not looked up yet" in answers.problem(NAME, {}, NOW)


# -- the declaration --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "path", "message"),
    [
        ({"direction": "in", "name": NAME}, "allow:0:name", "can't select incoming"),
        ({"direction": "out"}, "allow:0", "cidr or name is missing"),
        ({"direction": "out", "name": "deb"}, "allow", "expected a full name"),
        ({"direction": "out", "name": "10.0.0.1"}, "allow", "expected a full name"),
        ({"direction": "out", "name": "bad_label.example.org"}, "allow", "expected a full name"),
        ({"direction": "out", "name": f"{'a' * 64}.example.org"}, "allow", "expected a full name"),
        ({"direction": "out", "name": "bücher.example.org"}, "allow", "expected a full name"),
        ({"direction": "out", "name": "a.example.org."}, "allow", "expected a full name"),
        ({"direction": "out", "name": "x;flush ruleset.org"}, "allow", "expected a full name"),
    ],
)
def test_rule_without_sense_is_refused_with_its_path(rule: dict[str, str], path: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse.interface({"kind": "veth", "allow": [rule]}, "web:interface")
    (problem,) = refused.value.problems
    assert problem.path.startswith(f"web:interface:{path}") and message in problem.message


def test_number_of_names_is_bounded() -> None:
    allow = [{"direction": "out", "name": f"n{number}.example.org"} for number in range(checks.NAMES + 1)]
    with pytest.raises(SpecError, match="more than 64 names"):
        parse.interface({"kind": "veth", "allow": allow})


def test_name_is_kept_in_small_letters() -> None:
    assert spec(name="Deb.Example.ORG").allow[0].name == NAME


# -- the packet filter ------------------------------------------------------------------------
def record_of(allow: Filtered) -> Record:
    return Record(allow, {"ipv4": "10.203.0.5", "ipv6": "fd6e::5"}, {"ipv4": "10.203.0.1", "ipv6": "fd6e::1"}, "ns0")


def test_table_matches_a_set_for_each_family() -> None:
    allow = tuple(one for rule in spec(port=443).allow for one in rule.each)
    table = host_rules.build(
        [host_rules.HostFiltered("web", "ns0", "02:00:00:00:00:01", {"ipv4": "10.203.0.5"}, {}, allow)]
    )
    rules = [rule for chain in table.chains.values() for rule in chain.rules if "@name." in rule]
    four, six = (name_set(NAME, str(one), fam) for one, fam in zip(EVERYWHERE, ("ipv4", "ipv6"), strict=True))
    leads = [counting.chain("out", counting.text(rule)) for rule in allow]
    assert f"ip daddr @{four} tcp dport 443 goto {leads[0]}" in rules
    assert f"ip6 saddr @{six} tcp sport 443 accept" in rules
    assert table.sets[four].expiring and not table.sets[four].elements
    # A name never opens the way to the host itself.
    assert not table.sets["host"].elements


@pytest.mark.parametrize(("named", "leads"), [({"name": NAME}, False), ({}, True)])
def test_name_within_the_gateway_alone_never_leads_to_it(named: dict[str, str], leads: bool) -> None:
    rule = {"direction": "out", "cidr": "10.203.0.1/32", "port": 443, **named}
    parsed = parse.interface({"kind": "veth", "allow": [rule]})
    assert isinstance(parsed, Filtered)
    four = {"ipv4": "10.203.0.5"}, {"ipv4": "10.203.0.1"}
    table = host_rules.build([host_rules.HostFiltered("web", "ns0", "02:00:00:00:00:01", *four, parsed.allow)])
    assert bool(table.sets["host"].elements) == leads
    assert table.sets["out"].elements


def test_rules_without_a_name_keep_their_chains_names() -> None:
    allow = parse.interface({"kind": "veth", "allow": [{"direction": "out", "cidr": "198.51.100.0/24", "port": 443}]})
    assert isinstance(allow, Filtered)
    # The name on hosts that an earlier version set up: another would load their tables anew.
    assert host_rules.chain_name("out", allow.allow) == "out.eda40d8d7575"


@given(st.dictionaries(addresses.map(str), st.floats(0, 10.0**9), max_size=5))
def test_text_for_nft_holds_nothing_but_addresses(content: dict[str, float]) -> None:
    name = name_set(NAME, "0.0.0.0/0", "ipv4")
    lines = sets.text("netspace", {name: content}).splitlines()
    assert lines[0] == f"flush set inet netspace {name}" and len(lines) == (2 if content else 1)
    if content:
        listed = lines[1].removeprefix(f"add element inet netspace {name} {{ ").removesuffix(" }").split(", ")
        assert {one.split(" timeout ")[0] for one in listed} == content.keys()
        assert all(1 <= int(one.split(" timeout ")[1][:-1]) <= CEILING + STALE for one in listed)


def test_sets_hold_what_each_rule_may_mean() -> None:
    known = {(NAME, "ipv4"): answers.answered(Known(), {"151.101.2.132": 300.0, "10.1.2.3": 300.0}, NOW)}
    private = record_of(spec(cidr="10.0.0.0/8"))
    public = record_of(spec())
    found, refused = sets.contents(sets.rules(public), known, Own.of(["10.9.9.9"]), NOW)
    assert found[name_set(NAME, "0.0.0.0/0", "ipv4")].keys() == {"151.101.2.132"}
    assert "10.1.2.3 is not public" in refused[NAME][0]
    found, _ = sets.contents(sets.rules(private), known, Own.of(["10.1.2.3"]), NOW)
    assert found == {name_set(NAME, "10.0.0.0/8", "ipv4"): {}}, "the host's own address never counts"


# -- the record -------------------------------------------------------------------------------
@given(st.dictionaries(keys, st.dictionaries(addresses.map(str), ttls, max_size=3)))
def test_record_returns_what_was_written(content: dict[tuple[str, str], dict[str, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(root=Path(folder))
        layout.state.mkdir(parents=True)
        known = {
            key: answers.answered(Known(), {one: float(ttl) for one, ttl in answer.items()}, NOW)
            for key, answer in content.items()
        }
        record.write(layout, known)
        assert record.read(layout) == known


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"version": 9}', '{"version": 1, "names": {"a": 1}}',
                                     '{"version":1,"names":{"a.b":{"ipv4":{"until":{"; drop":1.0}}}}}'])  # fmt: skip
def test_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    layout = Layout(root=tmp_path)
    layout.state.mkdir(parents=True)
    record.path(layout).write_text(content)
    assert record.read(layout) == {}


def test_most_names_with_hostile_answers_can_be_read_again(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    layout.state.mkdir(parents=True)
    texts = [str(ipaddress.ip_address(2**128 - 1 - number)) for number in range(ADDRESSES_OF_NAME)]
    until = dict.fromkeys(texts, NOW + 1 / 3)
    most = Known(
        until, tuple(texts[: answers.MOST]), NOW + 1 / 3, NOW + 1 / 3, 30, "name-unanswered", "\U0001f600" * 200
    )
    label = "a" * 63
    names = [(f"{number:061}.{label}.{label}.{label}", "ipv6") for number in range(record.KEYS)]
    known = record.bounded(dict.fromkeys(names, most))
    assert sum(len(one.until) for one in known.values()) == record.ADDRESSES
    record.write(layout, known)
    assert record.path(layout).stat().st_size <= record.MOST
    assert record.read(layout) == known


def test_earlier_addresses_are_the_first_to_go() -> None:
    now = {f"151.101.2.{number}": NOW + 60 for number in range(4)}
    earlier = {f"151.101.3.{number}": NOW + 60 + number for number in range(200)}
    known = Known({**earlier, **now}, tuple(now))
    assert record.bounded({(NAME, "ipv4"): known})[NAME, "ipv4"] is known, "there is room"
    full = {(f"n{number}.org", "ipv4"): known for number in range(record.ADDRESSES // 8)}
    (cut,) = set(map(repr, record.bounded(full).values()))
    assert cut == repr(
        Known({**now, **{f"151.101.3.{number}": NOW + 60 + number for number in range(199, 195, -1)}}, tuple(now))
    )


@pytest.mark.parametrize(
    "content",
    ['{"version": 2, "names": {}}', '{"version": 2, "names": {"a.b": {"ipv4": {"until": {"1.2.3.4": 9.0}}}}}'],
)
def test_record_of_another_version_counts_as_none(tmp_path: Path, content: str) -> None:
    layout = Layout(root=tmp_path)
    layout.state.mkdir(parents=True)
    record.path(layout).write_text(content)
    assert record.read(layout) == {}
    record.path(layout).write_text(content.replace("2", "1", 1))
    assert bool(record.read(layout)) == ("a.b" in content)


def test_record_that_is_too_large_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root=tmp_path)
    layout.state.mkdir(parents=True)
    record.write(layout, {(NAME, "ipv4"): answers.answered(Known(), {"151.101.2.132": 300.0}, NOW)})
    assert record.read(layout)
    monkeypatch.setattr(record, "MOST", record.path(layout).stat().st_size - 1)
    assert record.read(layout) == {}


# -- reach ------------------------------------------------------------------------------------
def world(*pinned: str, **rule: object) -> reach.World:
    named = {NAME: tuple(map(ipaddress.ip_network, pinned))} if pinned else {}
    gateway = ipaddress.ip_address("10.203.0.1")
    return reach.World(
        frozenset({"web"}), {"web": spec(**rule)}, gateways=frozenset({gateway}), named=named
    )  # fmt: skip


def test_name_is_an_end_that_its_rule_reaches() -> None:
    found = reach.answer(world("151.101.2.132"), "web", NAME)
    assert found.begins and found.edges[0].rule.endswith("interface:allow:0")
    other = reach.answer(world("151.101.2.132"), "web", "other.example.org")
    assert not other.begins and "names other.example.org" in other.why_not["packets"]


def test_address_is_reached_while_the_name_has_it() -> None:
    there = world("151.101.2.132", port=443)
    found = reach.answer(there, "web", "151.101.2.132")
    assert found.begins and found.edges[0].what == f"tcp 443 to {NAME}"
    other = reach.answer(there, "web", "151.101.2.133")
    assert not other.begins and "no rule of web's interface covers" in other.why_not["packets"]


def test_name_never_reaches_the_host() -> None:
    found = reach.answer(world("10.203.0.1", cidr="10.0.0.0/8"), "web", "10.203.0.1")
    assert not found.begins


def test_unknown_addresses_may_be_any_within_the_rule() -> None:
    assert reach.answer(world(), "web", "203.0.113.0/24").begins
    bounded = world(cidr="198.51.100.0/24")
    assert reach.answer(bounded, "web", "198.51.100.7").begins
    assert not reach.answer(bounded, "web", "203.0.113.7").begins


def test_paths_to_a_name_begin_at_who_may_reach_it() -> None:
    assert [path[0].source for path in reach.paths_to(world("151.101.2.132"), NAME)] == ["web"]
