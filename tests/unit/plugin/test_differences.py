"""A plan, shown as the differences that it would remove."""

from __future__ import annotations

from netspace.plan import Plan, Refusal, Step
from netspace.plugin import differences

WATCH = Step("service", "netspace-supervisor", "start", {"state": {"old": "down", "new": "running"}})
WEB = Step("environment", "web", "start", reason="it is stopped")


def test_plan_without_a_step_is_no_difference() -> None:
    assert differences.told(Plan(notes=["a", "a"]), "declaration", 0) == {
        "compared_with": "declaration", "compared": "1970-01-01T00:00:00Z", "differs": False,
        "differences": [], "refused": [], "notes": ["a"],
    }  # fmt: skip


def test_each_key_is_a_row_once() -> None:
    found = differences.told(Plan([WATCH, WATCH]), "last apply", 0)
    assert found["differences"] == [
        {"kind": "service", "name": "netspace-supervisor", "action": "start", "key": "state", "old": "down",
         "new": "running", "reason": ""},
    ]  # fmt: skip


def test_reason_without_a_key_is_a_row() -> None:
    (row,) = differences.told(Plan([WEB]), "last apply", 0)["differences"]
    assert (row["key"], row["old"], row["new"], row["reason"]) == ("", None, None, "it is stopped")


def test_refusal_alone_differs() -> None:
    found = differences.told(Plan(refusals=[Refusal("link", "broker", "no answer")]), "last apply", 0)
    assert found["differs"]
    assert found["refused"] == [{"kind": "link", "name": "broker", "message": "no answer"}]
