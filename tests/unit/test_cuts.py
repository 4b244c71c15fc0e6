"""Cuts of links by the fleet's master: a run whose pillar is from before the cut doesn't make the links again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.host import cuts, revise
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.link.record import Record, write
from netspace.spec import parse
from netspace.spec.types import Declaration, LocalBroker

H1 = {"trust_domain": "h1.example.org", "address": "198.51.100.1:5671"}
H3 = {"trust_domain": "h3.example.org", "address": "198.51.100.3:5671"}
LINKS = [
    {"from": "web@h1", "to": "db"},
    {"from": "log", "to": "web@h1"},
    {"from": "log", "to": "till@h3"},
    {"from": "db", "to": "log"},
]
EVERY = {"web@h1.db", "log.web@h1", "log.till@h3", "db.log"}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("boot-1")
    return Host(Layout(root=tmp_path))


def declared(*without: str) -> Declaration:
    broker: dict[str, Any] = {
        "kind": "local",
        "host": "h2",
        "trust_domain": "h2.example.org",
        "authority": "/etc/a",
        "listen": "198.51.100.2:5671",
        "names_key": "/etc/n",
        "hosts": {"h1": H1, "h3": H3},
    }
    links = [link for link in LINKS if f"{link['from']}.{link['to']}" not in without]
    environments = {name: {"image": "tar:/x"} for name in ("db", "log")}
    return parse.declaration({"broker": broker, "environments": environments, "links": links})


def made(host: Host, wanted: Declaration) -> set[str]:
    """Return the links that an apply of a declaration would make."""
    return {link.name for link in host._permitted(wanted, host._link_verdicts(wanted, False))}


def test_a_run_of_before_a_cut_makes_no_link_again(host: Host) -> None:
    stale, now = declared(), declared("web@h1.db", "log.web@h1")
    assert made(host, stale) == EVERY
    assert not revise.note(host, now, ["h1"], ["h1"], cuts.clock())
    assert made(host, stale) == {"log.till@h3", "db.log"}
    assert "master ended it" in host._link_verdicts(stale, False)["log.web@h1"].comment
    assert not revise.note(host, stale, ["h1"], [], cuts.clock())  # trust is back
    assert made(host, stale) == EVERY


def test_a_pillar_of_after_a_cut_brings_links_back(host: Host) -> None:
    """A pillar that was requested after the cut brings links back.

    An example is ``netspace_fleet.apply`` after the host was replaced.
    """
    before = cuts.clock()
    revise.part(host, ["h1"])
    cuts.heard(host.layout, declared().links, before)
    assert made(host, declared()) == {"log.till@h3", "db.log"}
    cuts.heard(host.layout, declared().links, cuts.clock())
    assert made(host, declared()) == EVERY


def test_a_cut_counts_before_the_pillar_is_there(host: Host) -> None:
    revise.part(host, ["h1"])
    assert made(host, declared()) == {"log.till@h3", "db.log"}


def test_a_cut_of_one_link_leaves_the_others(host: Host) -> None:
    write(host.layout, Record(LocalBroker(), {link.name: link for link in declared().links}))
    assert not revise.note(host, declared("log.web@h1"), [], [], cuts.clock())
    assert made(host, declared()) == EVERY - {"log.web@h1"}


def test_a_cut_is_forgotten_after_the_longest_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    at = cuts.clock()
    revise.part(host, ["h1"])
    for later, found in ((cuts.LASTS - 1, {"log.till@h3", "db.log"}), (cuts.LASTS + 5, EVERY), (-1000, EVERY)):
        monkeypatch.setattr(cuts, "clock", lambda later=later: at + later)
        assert made(host, declared()) == found


@pytest.mark.parametrize("damage", ["{", "[]", '{"@h1": 3}', '{"@h1": ["a", true]}'])
def test_a_damaged_note_hinders_no_cut(host: Host, damage: str) -> None:
    host.layout.run.mkdir(parents=True)
    (host.layout.run / "cuts.json").write_text(damage)
    assert not revise.note(host, declared("web@h1.db", "log.web@h1"), ["h1"], ["h1"], cuts.clock())
    assert made(host, declared()) == {"log.till@h3", "db.log"}


def test_a_note_that_cannot_be_written_hinders_no_cut(host: Host) -> None:
    (host.layout.run / "cuts.lock").mkdir(parents=True)
    assert "isn't noted" in revise.part(host, ["h1"])[0]


@given(st.permutations([1.0, 2.0, 3.0, 4.0]), st.sets(st.sampled_from([1.0, 2.0, 3.0, 4.0])))
def test_the_pillar_that_was_requested_last_counts(
    tmp_path_factory: pytest.TempPathFactory, order: list[float], cut: set[float]
) -> None:
    """The host handles several messages of the master at once.

    In any order of their notes, the pillar that was requested last counts.
    """
    host = Host(Layout(root=tmp_path_factory.mktemp("host")))
    began = cuts.clock() - 10
    for number in order:
        left = declared("web@h1.db", "log.web@h1") if number in cut else declared()
        revise.note(host, left, ["h1"], ["h1"] if number in cut else [], began + number)
    ended = cuts.refused(host.layout, declared().links)
    assert ended == ({"web@h1.db", "log.web@h1"} if 4.0 in cut else set())
