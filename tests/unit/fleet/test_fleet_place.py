"""Placement of a fleet's environments: only on matching hosts, evenly spread, without needless moves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import fleets, published

from netspace.fleet import parse, place
from netspace.fleet.place import Placement
from netspace.fleet.types import Published

IMAGE = {"image": "tar:/srv/shop.tar"}
NODEGROUPS = {"edge": "L@h1,h2 or h3", "back": ["h4"], "grains": "G@role:web", "both": "h1 and h2"}


def placed(
    data: dict[str, Any],
    previous: dict[str, tuple[str, ...]] | None = None,
    joined: dict[str, Published] | None = None,
) -> Placement:
    return place.place(parse.fleet({"fleet.yaml": data}), joined or {}, NODEGROUPS, previous or {})


def declared(on: Any, hosts: Any = ("h1", "h2", "h3", "h4"), **more: Any) -> dict[str, Any]:
    named = hosts if isinstance(hosts, dict) else dict.fromkeys(hosts)
    return {"hosts": named, "environments": {"web": {"on": on, **IMAGE, **more}}}


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("h2", ("h2",)),
        (["h1", "h4"], ("h1", "h4")),
        ("h[12]", ("h1", "h2")),
        ("N@edge", ("h1", "h2", "h3")),
        ("N@back", ("h4",)),
        ("L@h1,h9", ("h1",)),
        ("E@h[34]$", ("h3", "h4")),
        (["N@back", "h1"], ("h1", "h4")),
    ],
)
def test_each_form_of_on_matches_its_hosts(on: Any, expected: tuple[str, ...]) -> None:
    found = placed(declared(on, replicas="all"))
    assert (found.hosts["web"], found.problems) == (expected, ())


def test_a_minions_id_matches_as_the_hosts_name_does() -> None:
    hosts = {"h1": {"minion": "a.example.org"}, "h2": {"minion": "b.example.net"}}
    assert placed(declared("*.example.org", hosts)).hosts["web"] == ("h1",)


@pytest.mark.parametrize(
    ("on", "reason"),
    [
        ("h9", "declare the host"),
        ("x*", "declare the host"),
        ("G@role:web", "claim about itself"),
        ("N@grains", "hosts can choose their grains and pillar"),
        ("I@role:web", "hosts can choose their grains and pillar"),
        ("N@both", "may only join ids"),
        ("N@none", "expected a nodegroup of the master"),
        ("E@(", "unterminated"),
    ],
)
def test_a_target_that_cannot_be_is_refused(on: str, reason: str) -> None:
    (problem,) = placed(declared(on)).problems
    assert problem.path == "environments:web:on" and reason in problem.reason


def test_a_grain_counts_once_the_declaration_trusts_it() -> None:
    data = {**declared("G@role:we*", replicas="all"), "trusted_grains": ["role"]}
    joined = {**published(["h1", "h2"], grains={"role": "web"}), **published(["h3"], grains={"role": "db"})}
    assert placed(data, joined=joined).hosts["web"] == ("h1", "h2")
    few = placed({**declared("G@role:we*", replicas=4), "trusted_grains": ["role"]}, joined=joined)
    assert "2 of 4 hosts are possible" in few.missing[0].text and few.problems == ()
    data["trusted_grains"] = ["os"]
    assert placed(data, joined=joined).problems


def test_a_trusted_grain_waits_for_hosts_that_have_not_joined() -> None:
    data = {**declared("G@role:web"), "trusted_grains": ["role"]}
    found = placed(data, joined=published(["h1"]), previous={"web": ("h2",)})
    assert found.problems == () and found.hosts == {} and found.moves[0].new == ()
    assert "4 hosts lack that grain: salt-run netspace_fleet.join h1 h2 h3 and 1 more" in found.missing[0].text
    other = published(["h1", "h2", "h3", "h4"], grains={"role": "db"})
    assert "matches no host; declare the host" in placed(data, joined=other).problems[0].reason
    data["environments"]["web"]["on"] = ["G@role:web", "h3"]
    assert placed(data).hosts["web"] == ("h3",)


def test_only_hosts_of_the_level_are_possible() -> None:
    hosts = {"h1": {"level": "L2"}, "h2": {"level": "L4"}, "h3": {}, "h4": {}}
    joined = {**published(["h3"], level="L3"), **published(["h4"])}
    found = placed(declared("h*", hosts, replicas="all", at_least="L3"), joined=joined)
    assert (found.hosts["web"], found.missing, found.problems) == (("h2", "h3"), (), ())
    few = placed(declared("h*", hosts, replicas=3, at_least="L3"), joined=joined)
    assert "the level of h4 isn't known" in few.missing[0].text and few.problems == ()
    (problem,) = placed(declared("h1", hosts, at_least="L3")).problems
    assert "h1 has L2, and at_least is L3" in problem.reason


def test_more_replicas_than_hosts_is_a_problem() -> None:
    (problem,) = placed(declared("h[12]", replicas=3)).problems
    assert "2 of 3 hosts are possible" in problem.reason


hosts_of = st.integers(1, 12).map(lambda count: [f"h{number}" for number in range(count)])


@settings(max_examples=40, deadline=None)
@given(hosts_of, st.integers(1, 4), st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
def test_another_host_moves_nothing(hosts: list[str], replicas: int, names: list[str]) -> None:
    data = declared("*", hosts)
    data["environments"] = {name: {"on": "*", "replicas": min(replicas, len(hosts)), **IMAGE} for name in names}
    first = placed(data)
    data["hosts"] = {**data["hosts"], "new": None}
    second = placed(data, dict(first.hosts))
    assert (second.hosts, second.moves) == (first.hosts, ())


@settings(max_examples=40, deadline=None)
@given(hosts_of, st.integers(1, 3), st.data())
def test_a_host_that_is_gone_moves_only_what_it_ran(hosts: list[str], replicas: int, data: st.DataObject) -> None:
    names = [f"e{number}" for number in range(8)]
    wanted = declared("*", [*hosts, "y", "z"])
    replicas = min(replicas, len(hosts))
    wanted["environments"] = {name: {"on": "*", "replicas": replicas, **IMAGE} for name in names}
    first = placed(wanted)
    gone = data.draw(st.sampled_from(hosts))
    del wanted["hosts"][gone]
    second = placed(wanted, dict(first.hosts))
    for name in names:
        if gone in first.hosts[name]:
            assert set(first.hosts[name]) - {gone} <= set(second.hosts[name])
        else:
            assert second.hosts[name] == first.hosts[name]
    assert {move.environment for move in second.moves} == {name for name in names if gone in first.hosts[name]}
    assert all(f"{gone} is no longer declared" in move.reason for move in second.moves)


@settings(max_examples=40, deadline=None)
@given(fleets(), st.randoms())
def test_the_order_of_a_declaration_counts_for_nothing(data: dict[str, Any], random: Any) -> None:
    shuffled = dict(data)
    for key in ("hosts", "environments"):
        names = list(data[key])
        random.shuffle(names)
        shuffled[key] = {name: data[key][name] for name in names}
    assert placed(shuffled).hosts == placed(data).hosts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_replicas_are_spread_evenly(racks: int, each: int, replicas: int) -> None:
    hosts = {f"h{rack}-{number}": {"labels": {"rack": f"r{rack}"}} for rack in range(racks) for number in range(each)}
    replicas = min(replicas, len(hosts))
    found = placed(declared("*", hosts, replicas=replicas, spread="rack")).hosts["web"]
    counts = [sum(host.startswith(f"h{rack}-") for host in found) for rack in range(racks)]
    assert sum(counts) == replicas and max(counts) - min(counts) <= 1


def test_a_host_without_the_label_is_no_place_to_spread_to() -> None:
    hosts = {"h1": {"labels": {"rack": "r1"}}, "h2": {}}
    found = placed(declared("*", hosts, replicas="all", spread="rack"))
    assert found.hosts["web"] == ("h1",)


def test_a_change_of_the_declaration_is_a_move_with_its_reason() -> None:
    before = {"web": ("h1",)}
    (move,) = placed(declared("h[23]"), before).moves
    assert (move.old, move.reason) == (("h1",), "`on` no longer matches h1")
    (more,) = placed(declared("h*", replicas=2), before).moves
    assert "h1" in more.new and more.reason == "2 replicas instead of 1"
    (gone,) = placed({"hosts": {"h1": None}}, before).moves
    assert (gone.new, gone.reason) == ((), "it is no longer declared")
