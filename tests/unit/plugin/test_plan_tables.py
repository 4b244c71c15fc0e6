"""Tables of a fleet's plans."""

from __future__ import annotations

from typing import Any

from netspace.fleet.hosts import Outcome
from netspace.fleet.planning import plans, records
from netspace.fleet.planning.records import HostRecord, PlanRecord
from netspace.plan import Plan, Refusal, Step
from netspace.plugin import tables, views

NEW = {"image": {"old": "sha256:9f86d081", "new": "sha256:3c2b1a99"}}


def record(fleet: dict[str, Plan], silent: dict[str, str] | None = None) -> PlanRecord:
    found = {host: plans.host_plan(host, None, plan) for host, plan in fleet.items()}
    hosts = {host: HostRecord(host, plan) for host, plan in found.items()}
    return PlanRecord(plans.identity(found), 0.0, "", False, hosts, silent or {})


def lines(data: Any) -> list[str]:
    found = views.render(data, views.Screen(0.0, tables.plain))
    assert found is not None
    assert max(map(tables.columns, found)) <= tables.WIDTH
    return found


def test_one_change_of_a_thousand_hosts_is_one_row() -> None:
    step = Step("environment", "web", "restart", NEW)
    made = record({f"h{number}": Plan([step]) for number in range(1000)}, {"h1000": "did not answer within 5 s"})
    shown = lines(records.told(made))
    assert shown[0] == "  1000 of 1001 hosts would change, 0 do not, 1 have no plan"
    assert [one.split() for one in shown[1:3]] == [
        ["HOSTS", "KIND", "ACTION", "NAMES"], ["1000", "environment", "restart", "web"],
    ]  # fmt: skip
    assert shown[3:] == [
        "    image: sha256:9f86d081 -> sha256:3c2b1a99",
        "  h1000: no plan: did not answer within 5 s",
        f"  salt-run netspace_fleet.apply {made.id}",
    ]


def test_many_different_changes_stay_a_page() -> None:
    fleet = {
        f"h{number:03}": Plan(
            [
                Step("environment", f"e{number}", "restart", {"env": {"old": number, "new": number + 1}}),
                Step("interface", f"e{number}", f"verb{number % 40}", NEW, "a reason " * 60),
            ],
            [Refusal("link", f"a{number}.b", "x" * 500)],
        )
        for number in range(200)
    }
    shown = lines(records.told(record(fleet, {f"s{number}": f"reason {number}" for number in range(50)})))
    assert len(shown) <= 100
    text = "\n".join(shown)
    assert "200 different changes; one of them:" in text and "31 more kinds of change: --out=json has all" in text
    assert text.index("restart") < text.index("verb"), "what interrupts a program comes first"
    assert "195 more things are left out" in text and "45 more reasons" in text


def test_nothing_to_do_names_no_apply() -> None:
    shown = lines(records.told(record({"h1": Plan()})))
    assert shown[0] == "  0 of 1 hosts would change, 1 do not" and "nothing to apply" in shown[1] and len(shown) == 2
    drifted = lines(records.told(record({"h1": Plan([Step("link", "a.b", "create")])}), what="drift"))
    assert "differ from what was applied" in drifted[0] and "apply" not in "".join(drifted[1:])


def test_an_apply_is_told_by_reason() -> None:
    made = record({"h1": Plan()})
    outcomes = {"h1": Outcome(True), "h2": Outcome(False, "no disk"), "h3": Outcome(False, "no disk")}
    shown = lines(records.applied(made, outcomes))
    assert shown == [f"  plan {made.id}: done on 1 of 3 hosts", "  h2, h3: failed: no disk"]


def test_two_plans_differ_in_words() -> None:
    web, log = Step("environment", "web", "restart", NEW), Step("environment", "log", "create")
    one, other = record({"h1": Plan([web]), "h2": Plan([web])}), record({"h1": Plan([web, log]), "h3": Plan()})
    text = "\n".join(lines(records.compared(one, other)))
    assert f"{one.id} alone would:" in text and f"{other.id} alone would:" in text
    assert f"plan in {one.id} alone: h2" in text and f"plan in {other.id} alone: h3" in text
    assert "h1" in text.split(f"{other.id} alone would:")[1]
    assert lines(records.compared(one, one)) == ["  the two plans do the same"]


def test_what_a_host_says_can_not_write_to_the_terminal() -> None:
    evil = "\x1b[2J\nevil"
    step = Step("environment", evil, "restart", {evil: {"old": evil, "new": evil}}, evil)
    made = record({"h1": Plan([step], [Refusal(evil, evil, evil)])}, {"h2": evil})
    assert not any("\x1b" in line or "\n" in line for line in lines(records.told(made)))
