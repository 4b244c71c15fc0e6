"""Draining a host: environments that can run elsewhere move, the others are reported, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.fleet.fleets import fleets, published, written

from netspace.errors import NetspaceError
from netspace.fleet import draining, parse, place
from netspace.fleet.declaration import FleetDeclaration

IMAGE = {"image": "tar:/srv/shop.tar"}
FLEET: dict[str, Any] = {
    "hosts": {host: {"address": f"198.51.100.{host[1]}"} for host in ("h1", "h2", "h3")},
    "environments": {
        "fixed": {"on": "h1", **IMAGE},
        "free": {"on": ["h1", "h2"], **IMAGE},
        "every": {"on": "h*", "replicas": "all", **IMAGE},
        "asks": {"on": "h3", **IMAGE},
    },
    "links": [{"from": "asks", "to": "free"}],
}


@pytest.fixture
def declared(tmp_path: Path) -> FleetDeclaration:
    """Return a declaration in force in which ``free`` runs on h1."""
    at_first = {**FLEET, "environments": {**FLEET["environments"], "free": {"on": "h1", **IMAGE}}}
    made = written(tmp_path)
    for facts in published(["h1", "h2", "h3"]).values():
        made.register.write(facts)
    for data in (at_first, FLEET):
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        assert made.apply() is None
    assert made.store.placed()["free"] == ("h1",)
    return made


def section(declared: FleetDeclaration, host: str) -> dict[str, Any]:
    pillar = declared.answer(host).pillar
    assert pillar is not None
    return dict(pillar["netspace"])


def test_a_drained_host_keeps_only_what_cannot_move(declared: FleetDeclaration) -> None:
    found = draining.drain(declared, ["h1"], undo=False)
    assert found["changed"] is True and found["drained"] == ["h1"] and found["apply"] == ["h1", "h2", "h3"]
    assert found["stay"] == ["fixed: stays on the drained h1: no other host is possible"]
    moves = {one["environment"]: one for one in found["moves"]}
    assert moves["free"] == {"environment": "free", "old": ["h1"], "new": ["h2"], "reason": "h1 is drained"}
    assert moves["every"]["new"] == ["h2", "h3"] and moves.keys() == {"free", "every"}
    assert list(section(declared, "h1")["environments"]) == ["fixed"]
    assert section(declared, "h3")["links"][0]["to"] == "free@h2", "links follow"
    assert [one.text for one in declared.check().missing] == found["stay"]


def test_hosts_with_new_sealed_links_are_to_join(declared: FleetDeclaration) -> None:
    path = declared.drained.path.parents[1] / "fleet.yaml"
    path.write_text(yaml.safe_dump({**FLEET, "links": [{"from": "asks", "to": "free", "seal": True}]}))
    assert declared.apply() is None
    assert draining.drain(declared, ["h1"], undo=False)["join"] == ["h2", "h3"], "not h1: it only loses its link"
    assert draining.drain(declared, ["h1"], undo=True)["join"] == []


def test_draining_again_changes_nothing(declared: FleetDeclaration) -> None:
    draining.drain(declared, ["h1"], undo=False)
    before = declared.drained.path.stat().st_ino, declared.store.current().manifest
    found = draining.drain(declared, ["h1"], undo=False)
    assert (found["changed"], found["moves"], found["apply"]) == (False, [], [])
    assert (declared.drained.path.stat().st_ino, declared.store.current().manifest) == before


def test_an_undone_drain_moves_nothing_back(declared: FleetDeclaration) -> None:
    draining.drain(declared, ["h1"], undo=False)
    found = draining.drain(declared, ["h1"], undo=True)
    assert (found["changed"], found["drained"], found["stay"]) == (True, [], [])
    assert [one["environment"] for one in found["moves"]] == ["every"], "only `all` goes back"
    assert declared.store.placed()["free"] == ("h2",)


def test_two_drained_hosts_share_what_cannot_move(declared: FleetDeclaration) -> None:
    found = draining.drain(declared, ["h1", "h2"], undo=False)
    assert {one.partition(":")[0] for one in found["stay"]} == {"fixed", "free"}
    assert declared.store.placed()["free"] == ("h1",), "it stays where it is"


@pytest.mark.parametrize(
    ("names", "reason"), [((), "name one host"), (("h9",), "h9: not a host of the fleet; declare it under hosts first")]
)
def test_what_is_no_host_is_not_drained(declared: FleetDeclaration, names: tuple[str, ...], reason: str) -> None:
    with pytest.raises(NetspaceError, match=reason):
        draining.drain(declared, names, undo=False)
    assert not declared.drained.path.exists()


def test_a_drain_that_breaks_a_link_is_refused(declared: FleetDeclaration, tmp_path: Path) -> None:
    hosts = {**FLEET["hosts"], "h2": {}}  # free would go there, and asks could not reach it
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({**FLEET, "hosts": hosts}, sort_keys=False))
    assert not declared.check().problems
    with pytest.raises(NetspaceError, match=r"nothing is changed, .*free runs on h2, which h3 can't reach"):
        draining.drain(declared, ["h1"], undo=False)
    assert not declared.drained.path.exists()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"hosts":["../x"]}', '{"hosts":[],"version":2}', '{"hosts":["h1"],"x":1}']
)
def test_a_damaged_file_leaves_what_is_in_force(declared: FleetDeclaration, content: str) -> None:
    before = section(declared, "h1")
    declared.drained.path.write_text(content)
    (problem,) = declared.check().problems
    assert problem.path == "what is drained" and "remove the file, and drain the hosts again" in problem.reason
    assert section(declared, "h1") == before


@given(fleets(), st.data())
def test_draining_moves_only_what_runs_on_the_host(data: dict[str, Any], drawn: st.DataObject) -> None:
    fleet = parse.fleet({"fleet.yaml": data})
    before = place.place(fleet, {}, {}, {}).hosts
    host = drawn.draw(st.sampled_from(sorted(fleet.hosts)))
    drained = place.place(fleet, {}, {}, before, drained={host})
    assert not drained.problems
    stay = {one.subject for one in drained.missing}
    for name, hosts in before.items():
        if host not in hosts:
            assert drained.hosts[name] == hosts
        elif name in stay:
            assert drained.hosts[name] == hosts == (host,)
        else:
            assert host not in drained.hosts[name] and drained.hosts[name]
    again = place.place(fleet, {}, {}, drained.hosts, drained={host})
    assert again.hosts == drained.hosts and not again.moves
