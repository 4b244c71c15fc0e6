"""State of a fleet: the declared environments, the hosts' reports, and hosts that don't answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from support.fleet import pictures
from support.fleet.fleets import published, written

from netspace.attestation.fleet import own_answers
from netspace.errors import NetspaceError
from netspace.fleet import explain, seen, status
from netspace.fleet.seen import Seen
from netspace.fleet.status import Expected, Now
from netspace.plugin import tables, views

NOW = 1_000_000.0
RUNNING = {"state": "running", "health": "healthy", "since": NOW - 60, "restarts": 0, "supervised": True}
GLANCE: dict[str, Any] = {
    "glance": 1,
    "trust": {"level": "L3", "verifier": "self", "reason": "no policy", "issued": NOW - 60, "expires": NOW + 60},
    "environments": {"web": RUNNING},
    "links": {"web.orders@h2": {"state": "active", "why": ""}},
    "refused": {},
    "problems": [],
}
FLEET = Expected({"h1": "m1", "h2": "m2"}, {"web": ("h1",), "orders": ("h2",)})


def said(**keys: Any) -> dict[str, Any]:
    return GLANCE | keys


def now(given: dict[str, Any], fleet: Expected = FLEET, verdicts: dict[str, Any] | None = None) -> Now:
    answers = seen.answers(list(fleet.hosts.values()), given, 20)
    return Now({host: answers[minion] for host, minion in fleet.hosts.items()}, verdicts or {}, NOW)


ORDERS = said(environments={"orders": RUNNING}, links={})


def test_a_well_fleet_needs_no_attention() -> None:
    found = status.status(FLEET, now({"m1": GLANCE, "m2": ORDERS}))
    assert status.good(found)
    assert found["summary"] == "2 of 2 hosts are well, and 2 of 2 replicas of environments"
    assert {row["state"] for row in found["hosts"].values()} == {"well"}
    assert found["hosts"]["h1"]["trust"]["by"] == "host", "nobody else told of it"


def test_a_silent_host_is_named_with_what_it_should_run() -> None:
    there = now({"m1": GLANCE})
    found = status.status(FLEET, there)
    assert not status.good(found)
    row = found["hosts"]["h2"]
    assert (row["state"], row["environments"]) == ("unseen", {"expected": 1, "well": 0})
    assert row["attention"] == [{"what": "", "mark": "bad", "text": "no answer within 20 s"}]
    assert row["trust"]["by"] == "nobody" and row["trust"]["level"] == ""
    assert status.listed(FLEET, there)["environments"][0] | {"text": ""} == {
        "environment": "orders", "host": "h2", "mark": "unknown", "state": "unknown", "health": "", "since": None,
        "restarts": 0, "text": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "mark", "text"),
    [
        ({"state": "failed", "problem": "exit 1"}, "bad", "exit 1"),
        ({"health": "unhealthy"}, "bad", "it is unhealthy"),
        ({"flapping": True}, "bad", "it is flapping"),
        ({"supervised": False}, "odd", "the supervisor doesn't run, so nothing starts it again"),
        ({"updating": True}, "odd", "an update runs"),
        ({"state": "starting", "health": ""}, "odd", "it is starting"),
        ({"health": "unknown"}, "odd", "it is running, unknown"),
        ({"state": "stopped", "declared_stopped": True, "health": ""}, "off", ""),
        ({"state": "stopped", "health": ""}, "odd", "it is stopped"),
    ],
)
def test_each_state_of_an_environment_is_judged(row: dict[str, Any], mark: str, text: str) -> None:
    there = now({"m1": said(environments={"web": RUNNING | row}), "m2": ORDERS})
    one = seen.standing("web", "h1", there.seen["h1"])
    assert (one.mark, one.text) == (mark, text)
    assert status.good(status.status(FLEET, there)) == (mark == "off")


def test_an_environment_that_is_absent_is_bad() -> None:
    there = now({"m1": said(environments={}), "m2": ORDERS})
    found = status.status(FLEET, there)["hosts"]["h1"]
    assert found["attention"][0]["text"] == "not applied: salt h1 state.apply netspace"
    off = FLEET._replace(off=frozenset({"web"}))
    assert status.good(status.status(off, there)), "it is declared stopped, and was never needed"


def test_an_environment_on_another_host_is_told_of() -> None:
    there = now({"m1": said(environments={"web": RUNNING, "orders": RUNNING, "own": RUNNING}), "m2": ORDERS})
    (row,) = (one for one in status.listed(FLEET, there)["environments"] if one["mark"] == "odd")
    assert (row["environment"], row["host"]) == ("orders", "h1")
    assert row["text"] == "it should run on h2: salt m1 state.apply netspace"


def test_the_masters_verdict_counts_before_the_hosts_word() -> None:
    verdict = {"state": "failed", "level": "L0", "reason": "the boot is bad", "remedy": "", "evidence": NOW - 5}
    there = now({"m1": GLANCE, "m2": ORDERS}, verdicts={"m1": verdict, "m2": {"state": "unknown"}})
    rows = status.status(FLEET, there)["hosts"]
    assert (rows["h1"]["trust"]["level"], rows["h1"]["trust"]["by"]) == ("L0", "master")
    assert rows["h1"]["attention"] == [{"what": "trust", "mark": "bad", "text": "the boot is bad"}]
    assert rows["h2"]["trust"]["by"] == "host"
    late = now({"m1": GLANCE, "m2": ORDERS})._replace(time=NOW + 100)
    assert status.status(FLEET, late)["hosts"]["h1"]["trust"]["mark"] == "odd", "its own result has expired"


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=500),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*GLANCE, "new"]), json, st.sampled_from(sorted(RUNNING)))
def test_whatever_a_host_says_the_table_is_narrow(key: str, value: Any, part: str) -> None:
    hostile = said(**{key: value}, more=value)
    for answer in (hostile, value, said(environments={"web": RUNNING | {part: value}}), NetspaceError(str(value))):
        there = now({"m1": answer, "m2": ORDERS})
        for found in (status.status(FLEET, there), status.listed(FLEET, there)):
            lines = views.render(found, views.Screen(NOW, tables.plain))
            assert lines and all(tables.columns(line) <= tables.WIDTH for line in lines)
            assert all(line.isprintable() for line in lines)


def test_attention_comes_first_in_the_table() -> None:
    three = FLEET._replace(hosts={"a1": "m1", "h1": "m1", "h2": "m2"}, notes=("broken",), waiting={"h1": "join h1"})
    found = status.status(three._replace(placed={"web": ("a1",), "gone": ()}), now({"m1": GLANCE}, three))
    lines = views.render(found, views.Screen(NOW, tables.plain)) or []
    assert lines[1:3] == ["  broken", "  gone runs nowhere: no host is possible"]
    order = [line.split()[0] for line in lines[4:] if line.startswith("  ") and line[2] != " "]
    assert order == ["h2", "h1", "a1"]


def test_both_functions_are_answered_with_a_signature() -> None:
    assert {"netspace.glance", "netspace.explain"} <= own_answers.SIGNED


FILE = """
hosts: {h1: {address: 198.51.100.1, level: L1}, h2: {address: 198.51.100.2, level: L4}, h3: {level: L4}}
environments:
  web: {on: "h*", at_least: L3, image: "tar:/srv/shop.tar"}
  two: {on: [h2, h3], replicas: 2, image: "tar:/srv/shop.tar", state: stopped}
"""


def test_an_explanation_has_the_placements_reasons(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FILE)
    made = written(tmp_path)
    asked: list[Any] = []

    def ask(minions: Any, function: str, arguments: Any) -> dict[str, Any]:
        asked.append((list(minions), function, dict(arguments)))
        return {"h2": {"explains": "two", "state": "running"}, "h3": {"explains": "web"}}

    found = explain.explain(made, "web", ask)
    (host,) = found["placement"]["hosts"]
    assert asked == [([host], "netspace.explain", {"name": "web"})]
    assert found["placement"]["refused"] == {"h1": "h1 has L1, and at_least is L3"}
    assert found["placement"]["reason"] == "2 hosts are possible, 1 needed: present ones stay, a hash chooses others"
    both = explain.explain(made, "two", ask)
    assert both["summary"] == "two runs on 1 of 2 hosts, and 1 did not answer"
    assert both["placement"]["reason"] == "these are all hosts that `on` matches and that are possible"
    assert "error" in both["hosts"]["h3"], "an answer about another environment doesn't count"
    assert explain.explain(made, "two", lambda *_: {})["hosts"]["h2"] == {"error": "h2 did not answer in time"}
    long = {"h2": {"explains": "two", "state": "running", "log": ["x" * 300_000]}}
    assert "can't be understood" in explain.explain(made, "two", lambda *_: long)["hosts"]["h2"]["error"]
    with pytest.raises(NetspaceError, match=r"the fleet has no environment wep; did you mean web\?"):
        explain.explain(made, "wep", ask)


def test_a_broken_declaration_shows_what_is_in_force(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE)
    made = written(tmp_path)
    made.register.folder.mkdir(parents=True)
    for facts in published(["h1", "h2", "h3"]).values():
        made.register.write(facts)
    fresh = status.expected(made)
    assert fresh.off == {"two"} and fresh.notes == () and fresh.hosts == {"h1": "h1", "h2": "h2", "h3": "h3"}
    assert made.apply() is None
    file.write_text(yaml.safe_dump({"hosts": {"h1": {"adress": 1}}}))
    kept = status.expected(made)
    assert kept[:3] == fresh[:3]
    assert "this shows the slices in force" in kept.notes[0]
    (tmp_path / "kept/compiled/in-force.json").unlink()
    with pytest.raises(NetspaceError, match=r"netspace_fleet\.check"):
        status.expected(made)


def test_changes_that_wait_for_a_plan_are_not_expected_yet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE)
    made = written(tmp_path)
    made.register.folder.mkdir(parents=True)
    for facts in published(["h1", "h2", "h3"]).values():
        made.register.write(facts)
    assert made.apply() is None
    before = status.expected(made)
    file.write_text(
        f"apply: planned\n{FILE}  new: {{on: h1, image: 'tar:/srv/shop.tar'}}\n".replace("h3: {", "h4: {}, h3: {")
    )
    made.answer("h1")  # from here on changes wait for a plan
    after = status.expected(made)
    assert after.placed == before.placed and after.off == before.off and after.notes == ()
    assert set(after.hosts) == {"h1", "h2", "h3", "h4"}
    assert after.waiting == {"h4": "nothing was applied there yet: salt-run netspace_fleet.plan"}


def test_an_answer_of_wrong_form_is_no_answer() -> None:
    (found,) = seen.answers(["m"], {"m": {"trust": {"level": "L9"}}}, 1).values()
    assert found == Seen(None, found.problem) and "can't be understood" in found.problem


def test_the_page_shows_the_table_of_the_pictures_fleet() -> None:
    made = pictures.compiled(pictures.shop())
    now, declared = pictures.seen(made), made.declared
    assert declared is not None
    off = frozenset(name for name, one in declared.environments.items() if one.body.get("state") == "stopped")
    fleet = Expected({host: declared.minion(host) for host in declared.hosts}, made.placed, off)
    lines = views.render(status.status(fleet, now), views.Screen(now.time, tables.plain)) or []
    assert "\n".join(["```", *lines, "```"]) in (checkout.ROOT / "docs/fleet-picture.md").read_text()
