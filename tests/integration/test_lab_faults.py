"""Faults in the middle of rollouts, and the lines of ``docs/lab.md`` that replace and drain hosts, tried in a lab.

The tests take minutes, so this file runs every fourth day. On such a day, it tries one thing in turn: the page, or one
of the faults. ``NETSPACE_FAULTS=all`` tries all of them, which takes half an hour on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator

import pytest
from support import checkout, sampling
from support.fleet import lab_faults
from support.fleet.lab_faults import FLEET, IMAGE, Running, answers, limits, plan_of, rolled_out
from support.hosts.lab import Lab
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/lab.md"

STEPS = (
    *("rollout: begins", "h2: prepared", "rollout: h2 apply", "h2: applied", "h2: good"),
    *("rollout: h1 apply", "h1: applied", "h1: good"),
)
"""Lines that a rollout prints, after which something fails."""
POWER = ("rollout: begins", "rollout: h2 apply", "rollout: h1 apply")
"""Lines after which the host in question loses power: h1 after the last one, else h2."""
BY_PAGE, LIE, CLOCK = "by the page", "a lie", "a wrong clock"
TURNS = tuple(
    turn for fault in (*STEPS, LIE, CLOCK, *(f"power: {step}" for step in POWER)) for turn in (BY_PAGE, fault)
)
TODAY = sampling.todays(TURNS, len(TURNS), sampling.today() // 4)  # tests/parts.py runs this file every fourth day


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_faults.joined(tmp_path_factory.mktemp("lab"), FLEET) as made:
        yield made


@pytest.fixture
def planned(lab: Lab) -> Iterator[str]:
    """Yield the id of a plan that changes both hosts, h2 first. After the test, restore both hosts' declaration."""
    yield plan_of(lab)
    lab.fleet.write_text(FLEET)
    back = lab.runner("netspace_fleet.plan")
    assert lab.runner("netspace_fleet.apply", back["plan"])["counts"]["failed"] == 0
    answers(lab, "h2", "a former fig")
    assert lab.apply() == 0


def lines(section: str) -> list[list[str]]:
    """Return the ``scripts/lab`` commands in the page's section *section*, each as a list of arguments.

    Lines for hosts with a TPM are left out, since these have none.
    """
    (block,) = re.findall(rf"^## {section}\n.*?^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(line[:2] == ["sudo", "scripts/lab"] for line in found), found
    return [line[2:] for line in found if "netspace_attestation.release" not in line]


@pytest.mark.parametrize("step", [turn for turn in STEPS if turn in TODAY])
def test_a_master_killed_at_a_step_repeats_no_host(lab: Lab, planned: str, step: str) -> None:
    with rolled_out(lab, planned) as first:
        first.read_to(step)
        lab.do("kill", "master")
        lab.do("start", "master")
        lab.warm()
        first.ended()
    until(lambda: lab.answering() == {"h1", "h2"}, "the minions are back", patience=300)
    found = lab.runner("netspace_fleet.rollout")
    assert len(found.get("bad", ())) <= 1, found
    if found["state"] == "interrupted":
        with contextlib.closing(Running(lab, "netspace_fleet.resume")) as second:
            found = second.ended()
            repeated = [line for line in second.lines if line.partition(":")[0] in first.good()]
        assert repeated == [], f"{first.lines} {second.lines}"
    assert (found["state"], found["hosts"]) == ("done", {"good": 2}), f"{found} {first.lines}"
    assert limits(lab) == ["96M"] * 2
    assert lab.apply() == 0


@pytest.mark.parametrize("step", [step for step in POWER if f"power: {step}" in TODAY])
def test_a_host_that_loses_power_in_a_rollout_is_alone_bad(lab: Lab, planned: str, step: str) -> None:
    lost = "h1" if step.startswith("rollout: h1") else "h2"
    before = lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"]
    with rolled_out(lab, planned) as first:
        first.read_to(step)
        lab_faults.lose_power(lab, lost)
        found = first.ended()
    assert found["state"] == "stopped", f"{found} {first.lines}"
    # A host that was asked for nothing yet isn't bad; nor is a host that was found good before.
    assert found.get("bad", []) == ([] if step == "rollout: begins" else [lost]), f"{found} {first.lines}"
    assert limits(lab) == (["None", "96M"] if lost == "h1" else ["None", "None"])
    lab.do("start", lost)
    if lost == "h2":
        assert lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"] == before, "h1 was left alone"
    lab_faults.settle(lab)  # it has what it had before, whatever the failure interrupted
    answers(lab, "h2", "a fig after a failure")
    # The same change goes on once the host is back.
    again = lab.runner("netspace_fleet.plan")
    with rolled_out(lab, again["plan"]) as second:
        found = second.ended()
    assert found["state"] == "done" and "bad" not in found, f"{found} {second.lines}"
    assert limits(lab) == ["96M"] * 2 and lab.apply() == 0


@pytest.mark.skipif(LIE not in TODAY, reason="another day has it; NETSPACE_FAULTS=all")
def test_a_host_that_lies_in_its_grains_gets_nothing(lab: Lab) -> None:
    for key, value in (("role", "vault"), ("netspace", "{level: L5}")):
        lab.salt("h2", "grains.set", key, value, "force=True")
    try:
        vault = f'  vault: {{{{on: "{{}}", image: "{IMAGE}", command: [/usr/bin/orders]{{}}}}}}\nlinks:'
        lab.fleet.write_text(FLEET.replace("links:", vault.format("G@role:vault", "")))
        (problem,) = lab.runner("netspace_fleet.check", code=1)["problems"]
        assert problem["path"] == "environments:vault:on" and "grain" in problem["reason"], problem
        # Named as trusted, a grain counts as it was when the host joined: then it hadn't this value.
        for where, more, end in (("G@role:vault", "", "trusted_grains: [role]\n"), ("h2", ", at_least: L3", "")):
            lab.fleet.write_text(FLEET.replace("links:", vault.format(where, more)) + end)
            checked = lab.runner("netspace_fleet.check")
            assert checked["problems"] == [] and "vault: " in str(checked["missing"]), checked
            assert "vault" not in lab.runner("netspace_fleet.slice", "h2")["netspace"]["environments"]
    finally:
        lab.fleet.write_text(FLEET)
        for key in ("role", "netspace"):
            lab.salt("h2", "grains.delkey", key, "force=True")


@pytest.mark.skipif(CLOCK not in TODAY, reason="another day has it; NETSPACE_FAULTS=all")
def test_a_wrong_clock_costs_sealed_answers_and_nothing_else(lab: Lab) -> None:
    def asked(seconds: int) -> str:
        command = f"python3 -c {shlex.quote(lab_faults.WRONG_CLOCK.format(seconds=seconds))}"
        found = lab.salt("h1", "netspace_environment.exec", "web", command)["h1"]
        return str(found["stdout"] or found["stderr"]).strip()

    answers(lab, "h2", "1 pear")
    assert "sealed order of 30 seconds" in asked(30), "a minute is allowed for"
    for seconds in (-3600, 3600):
        assert asked(seconds).startswith("no answer: "), seconds
    answers(lab, "h2", "2 pears")


@pytest.mark.skipif(BY_PAGE not in TODAY, reason="another day has it; NETSPACE_FAULTS=all")
def test_a_host_is_replaced_and_drained_by_the_page(lab: Lab) -> None:
    answers(lab, "h2", "1 fig")
    for line in lines("Replace a host"):
        lab.do(*line)
        if line[0] == "salt-key":
            assert lab.asks("2 figs").startswith("no answer: ")
            away = lab.runner("netspace_fleet.replace", "h2", code=1)["h2"]
            assert away["left"] and "hasn't accepted its key" in away["error"], away
    answers(lab, "h2", "3 figs")
    assert lab.runner("netspace_fleet.replace", "h2") == {"h2": {"changes": {}, "missing": []}}
    both = FLEET.replace("environments:", "  h3: {address: 198.51.100.3}\nenvironments:").replace(
        "on: h2", "on: [h2, h3]"
    )
    lab.fleet.write_text(both)
    assert lab.do("up").count("198.51.100.") == 4, "a new host"
    lab.runner("netspace_fleet.join", "h3")
    for line in lines("Drain a host"):
        lab.do(*line)
    answers(lab, "h3", "4 figs")
    again = lab.runner("netspace_fleet.drain", "h2")
    assert (again["changed"], again["moves"], again["apply"], again["join"]) == (False, [], [], [])
    assert lab.runner("netspace_fleet.drain", "h2", "undo=True")["apply"] == [], "nothing moves back"
    assert lab.apply() == 0
