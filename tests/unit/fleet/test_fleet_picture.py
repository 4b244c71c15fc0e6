"""Picture of a fleet: the hosts' reports, the source of each trust level, and a plan's changes."""

from __future__ import annotations

import json
import re
from typing import Any

from support.fleet import pictures

from netspace.fleet.planning.plans import Change, HostPlan
from netspace.fleet.planning.records import HostRecord, PlanRecord
from netspace.fleet.seen import Seen
from netspace.fleet.status import Now
from netspace.plugin import fleet_picture
from netspace.plugin.picture.model import Graph
from netspace.plugin.picture.planned import Planned, of_record, of_steps


def shop(*, live: bool = False, planned: Planned | None = None) -> Graph:
    made = pictures.compiled(pictures.shop())
    return fleet_picture.graph(made, pictures.seen(made) if live else None, planned)


def facts(graph: Graph, name: str) -> dict[str, str]:
    things = [*graph.nodes, *graph.groups]
    return dict(next(one.facts for one in things if one.name == name))


def test_a_declared_fleet_shows_no_state() -> None:
    made = shop()
    assert all(one.mark is None for one in (*made.nodes, *made.groups, *made.arrows))
    assert "state" not in facts(made, "orders@h3") and facts(made, "orders@h3")["requires"] == "require L3"
    (link,) = {arrow.what for arrow in made.arrows if (arrow.source, arrow.target) == ("shop-web@h1", "orders@h3")}
    assert link == "requests, sealed, 100/s"
    (arrow,) = [arrow for arrow in made.arrows if (arrow.source, arrow.target) == ("shop-web@h1", "orders@h3")]
    assert dict(arrow.facts) == {"pattern": "request", "seal": "yes", "rate": "100", "length": "50"}
    assert {arrow.target for arrow in made.arrows if arrow.by == "packets"} == {
        "shop-web@h1", "shop-web@h2", "203.0.113.0/24",
    }  # fmt: skip


def test_live_facts_say_whose_word_they_are() -> None:
    made = shop(live=True)
    marks = {node.name: node.mark for node in made.nodes}
    assert marks["orders@h3"] == "bad" and marks["vault@h4"] == "unknown" and marks["shop-web@h1"] == "well"
    assert facts(made, "orders@h3") | {"since": ""} == {
        "state": "failed", "why": "it ended (exit 1)", "since": "", "restarts": "4", "refused": "", "kernel": "",
        "runtime": "", "restart": "", "image": "tar:salt://images/shop.tar", "requires": "require L3",
        "file": "/srv/fleet/fleet.yaml",
    }  # fmt: skip
    assert facts(made, "h3")["trust"] == "L4 trusted, reported by the master's verifier"
    assert facts(made, "h4")["state"] == "no answer within 20 s"
    refused = next(node for node in made.nodes if node.name == "bill-print@h3")
    assert refused.refused == 12 and dict(refused.facts)["refused"] == "out: tcp to 192.0.2.7, port 25 (12 times)"
    states = {(arrow.source, arrow.target): arrow.mark for arrow in made.arrows if arrow.by == "messages"}
    assert states["orders@h3", "vault@h4"] == "well" and states["vault@h4", "log@h4"] == "unknown"
    assert made.notes[0].startswith("State of 2026-11-18 ") and made.notes[1] == "1 of 4 hosts did not answer."


def test_a_host_without_a_verdict_speaks_for_itself() -> None:
    made = pictures.compiled(pictures.shop())
    now = pictures.seen(made)
    own = fleet_picture.graph(made, Now(now.seen, {}, now.time))
    assert facts(own, "h1")["trust"] == "L1, reported by the host itself"
    assert facts(own, "h4")["trust"] == "unknown, no report"
    unasked = fleet_picture.graph(made, Now({"h1": Seen(None, "off")}, {}, now.time))
    assert facts(unasked, "h2")["state"] == "it was not asked"


def test_env_and_files_of_an_environment_are_not_shown() -> None:
    data = pictures.shop()
    data["environments"]["orders"]["env"] = {"TOKEN": "not-for-all"}
    made = pictures.compiled(data)
    assert "not-for-all" not in fleet_picture.picture("html", made, pictures.seen(made))


def change(kind: str, name: str, action: str, **changes: Any) -> Change:
    told = {key: {"old": old, "new": new} for key, (old, new) in changes.items()}
    return Change(kind, name, action, told)


STEPS = (
    change("environment", "orders", "restart", image=("9f", "3c")),
    change("interface", "orders", "change", mtu=(1500, 1400)),
    change("environment", "old", "remove"),
    change("interface", "old", "remove"),
    change("environment", "new", "create"),
    change("interface", "new", "create"),
    change("link", "orders.old", "remove"),
    change("link", "orders.vault@h4", "change", rate=(None, 5)),
    change("link", "broker", "change", message_size=(1, 2)),
)


def test_a_plans_steps_become_one_change_for_each_thing() -> None:
    found = {(one.kind, one.name): one for one in of_steps("h3", STEPS)}
    assert {key: one.change for key, one in found.items()} == {
        ("environment", "orders"): "changed", ("environment", "old"): "removed", ("environment", "new"): "added",
        ("link", "orders.old"): "removed", ("link", "orders.vault@h4"): "changed", ("host", ""): "changed",
    }  # fmt: skip
    assert found["environment", "orders"].text == (
        "restart\nimage: 9f -> 3c\ninterface orders: change\nmtu: 1500 -> 1400"
    )
    assert found["link", "orders.vault@h4"].text == "change\nrate: none -> 5"


def test_a_kept_plan_marks_what_it_adds_and_cuts() -> None:
    plan = HostPlan("0" * 64, "0" * 64, STEPS)
    record = PlanRecord("p0123456789abcde", 0.0, "", False, {"h3": HostRecord("h3", plan)}, {"h4": "no answer"})
    made = shop(planned=of_record(record))
    changes = {node.name: node.change for node in made.nodes if node.change}
    assert changes == {"orders@h3": "changed", "old@h3": "removed", "new@h3": "added"}
    arrows = {(arrow.source, arrow.target): arrow.change for arrow in made.arrows if arrow.change}
    assert arrows == {("orders@h3", "old@h3"): "removed", ("orders@h3", "vault@h4"): "changed"}
    assert {group.name: group.change for group in made.groups if group.change} == {"h3": "changed"}
    assert made.notes[1:3] == ["Changes of plan p0123456789abcde.", "h4 has no plan: no answer"]


def test_other_forms_have_no_state_and_no_plan() -> None:
    made = pictures.compiled(pictures.shop())
    for form in ("dot", "mermaid"):
        assert fleet_picture.picture(form, made, pictures.seen(made), pictures.planned()) == fleet_picture.picture(
            form, made
        )


def test_equal_fleets_have_equal_pages() -> None:
    one, other = (pictures.compiled(pictures.large(60, 6)) for _ in range(2))
    assert fleet_picture.picture("html", one, pictures.seen(one)) == fleet_picture.picture(
        "html", other, pictures.seen(other)
    )


def test_a_thousand_environments_make_a_small_page() -> None:
    made = pictures.compiled(pictures.large())
    page = fleet_picture.picture("html", made, pictures.seen(made))
    assert len(page.encode()) <= 2_000_000
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    found = json.loads(data)
    assert (len(found["n"]), len(found["g"]), len(found["l"])) == (1000, 100, 3000)
