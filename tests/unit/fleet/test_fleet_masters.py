"""Two masters of the same minions: the pillars that they serve if their stored data are equal, differ or are shared.

A minion with several masters gets its pillar from the master that it is connected to. So a minion sees a difference
between the masters' data only in the pillars.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet.fleets import fleets, published, written

from netspace.fleet import draining, trust
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.trust import Book, Distrust

IMAGE = {"image": "tar:/srv/shop.tar"}
HOSTS = ("h1", "h2", "h3")
FLEET: dict[str, Any] = {
    "defaults": {"attestation": {"verifier": "master", "verifier_keys": ["A" * 43]}},
    "hosts": {host: {"address": f"198.51.100.{host[1]}"} for host in HOSTS},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": ["h2", "h3"], **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
}


def master(folder: Path, data: dict[str, Any] = FLEET, joined: bool = True) -> FleetDeclaration:
    """Return a master with a folder of its own, which has the fleet's file."""
    folder.mkdir()
    (folder / "fleet.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    made = written(folder)
    for facts in published(data["hosts"] if joined else ()).values():
        made.register.write(facts)
    assert made.apply() is None
    return made


def copied(one: FleetDeclaration, folder: Path) -> FleetDeclaration:
    """Return a second, stand-by master: its folder and the fleet's file are copies of the first master's."""
    shutil.copytree(Path(one.root).parent, folder)
    return written(folder)


def served(one: FleetDeclaration, minion: str) -> dict[str, Any]:
    pillar = one.answer(minion).pillar
    return {} if pillar is None else dict(pillar["netspace"])


def runs(one: FleetDeclaration, name: str) -> list[str]:
    return [host for host in HOSTS if name in served(one, host).get("environments", {})]


@given(fleets(), st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masters_of_equal_memory_serve_the_same(
    tmp_path_factory: Any, data: dict[str, Any], draws: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("masters")
    first, second = master(folder / "a", data), master(folder / "b", data)
    minion = draws.draw(st.sampled_from(sorted(data["hosts"])))
    assert first.answer(minion).pillar == second.answer(minion).pillar


def test_a_master_that_stands_by_serves_what_the_first_did(tmp_path: Path) -> None:
    first = master(tmp_path / "a")
    (at,) = runs(first, "db")
    draining.drain(first, [at], undo=False)
    draining.drain(first, [at], undo=True)  # it ran elsewhere meanwhile, and stays there
    first.trust.write(Book(hosts={"h1": Distrust("judged", "failed", "ak-unknown", "another key", 1.0)}))
    second = copied(first, tmp_path / "b")
    for minion in HOSTS:
        assert second.answer(minion).pillar == first.answer(minion).pillar
    assert runs(second, "db") == runs(first, "db") != [at]
    assert "links" not in served(second, "h1"), "what the first one cut is cut"


def test_masters_of_other_memories_place_apart(tmp_path: Path) -> None:
    first, second = master(tmp_path / "a"), master(tmp_path / "b")
    (at,) = runs(first, "db")
    draining.drain(first, [at], undo=False)
    assert runs(second, "db") == [at] != runs(first, "db"), "each host would be told to stop what the other starts"
    assert served(first, "h1")["links"] != served(second, "h1")["links"]


def test_a_master_at_which_no_host_joined_serves_no_link_afar(tmp_path: Path) -> None:
    first, second = master(tmp_path / "a"), master(tmp_path / "b", joined=False)
    assert served(first, "h1")["links"] and "links" not in served(second, "h1")
    assert runs(second, "db") == runs(first, "db"), "environments stay"


@pytest.mark.parametrize("shared", [True, False])
def test_distrust_counts_at_its_own_master_alone(tmp_path: Path, shared: bool) -> None:
    first = master(tmp_path / "a")
    second = written(tmp_path / "a") if shared else master(tmp_path / "b")
    first.trust.write(Book(hosts={"h1": Distrust("judged", "failed", "ak-unknown", "another key", 1.0)}))
    (at,) = runs(first, "db")
    assert "links" not in served(first, at)
    assert ("links" in served(second, at)) is not shared, "a second folder restores what the first one cut"
    assert trust.judged_host(second.whole("h1") or {}) == "h1"
