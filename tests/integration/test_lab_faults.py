"""Faults in the middle of rollouts, and the lines of ``docs/lab.md`` that replace and drain hosts, tried in a lab.

The tests take minutes, so this file runs every fourth day. On such a day, it tries one thing in turn: the page, or one
of the faults. ``NETSPACE_FAULTS=all`` tries all of them, which takes a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from support import checkout, sampling
from support.hosts.lab import LAB, Lab
from support.hosts.lab import lab as lab_of
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/lab.md"
IMAGE = "tar:salt://images/shop.tar"
FLEET = f"""\
hosts:
  h1: {{address: 198.51.100.1}}
  h2: {{address: 198.51.100.2}}
environments:
  web:    {{on: h1, image: "{IMAGE}", command: [/usr/bin/web]}}
  orders: {{on: h2, image: "{IMAGE}", command: [/usr/bin/orders]}}
links:
  - {{from: web, to: orders, pattern: request, seal: true}}
"""


STEPS = (
    *("rollout: begins", "h2: prepared", "rollout: h2 apply", "h2: applied", "h2: good"),
    *("rollout: h1 apply", "h1: applied", "h1: good"),
)
"""Lines that a rollout prints, after which something fails."""
BY_PAGE, LIE, CLOCK = "by the page", "a lie", "a wrong clock"
TURNS = tuple(turn for fault in (*STEPS, LIE, CLOCK) for turn in (BY_PAGE, fault))
TODAY = sampling.todays(TURNS, len(TURNS), sampling.today() // 4)  # tests/parts.py runs this file every fourth day
WRONG_CLOCK = """
import runpy, sys, time
real, sys.argv = time.time, ["web", "{seconds}", "seconds"]
time.time = lambda: real() + {seconds}
runpy.run_path("/usr/bin/web", run_name="__main__")
"""
"""``web`` with a clock that is wrong: in the lab, all hosts have the machine's."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "fleet.yaml").write_text(FLEET)
    with lab_of(folder / "lab") as made:
        made.do("up", str(folder / "fleet.yaml"))
        made.runner("netspace_fleet.join", "h1", "h2")
        made.apply()
        made.runner("netspace_fleet.join", "h1", "h2")
        yield made


@pytest.fixture
def planned(lab: Lab) -> Iterator[str]:
    """Yield the id of a plan that changes both hosts, h2 first. After the test, restore both hosts' declaration."""
    changed = FLEET.replace("command: [", "limits: {memory: 96M}, command: [")
    lab.fleet.write_text(f"{changed}apply: planned\nrollout: {{canary: [h2], settle: 0, deadline: 45}}\n")
    plan = lab.runner("netspace_fleet.plan")
    assert plan["counts"]["change"] == 2 and plan["without_plan"] == [], plan
    yield str(plan["plan"])
    lab.fleet.write_text(FLEET)
    back = lab.runner("netspace_fleet.plan")
    assert lab.runner("netspace_fleet.apply", back["plan"])["counts"]["failed"] == 0
    answers(lab, "h2", "a former fig")
    assert lab.apply() == 0


class Running:
    """A rollout that runs as a process, and the lines that it has printed."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.lines: list[str] = []
        command = [str(LAB), "salt-run", "--out=json", *arguments]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=lab.environment
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def read_to(self, beginning: str) -> None:
        """Read the rollout's output until it prints a line that begins with *beginning*."""
        for line in self._output:
            self.lines.append(line)
            if line.startswith(beginning):
                return
        raise AssertionError(f"{beginning} never came: {''.join(self.lines)}")

    def ended(self) -> dict[str, Any]:
        """Wait until the rollout has ended; return its answer, or an empty mapping if it printed no answer."""
        self.lines += self._output
        self._process.wait()
        text = "".join(line for line in self.lines if not line.startswith(("rollout: ", "h1: ", "h2: ")))
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
            return found
        return {}

    def good(self) -> set[str]:
        """Return the hosts that the rollout has reported as good."""
        return {host for host in ("h1", "h2") if f"{host}: good\n" in self.lines}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()


@contextlib.contextmanager
def rolled_out(lab: Lab, plan: str) -> Iterator[Running]:
    with contextlib.closing(Running(lab, "netspace_fleet.rollout", plan, "timeout=30")) as made:
        yield made


def limits(lab: Lab) -> list[str]:
    """Return the memory limit in each host's slice of the declaration, h1's first; ``None`` stands for no limit."""
    slices = [lab.runner("netspace_fleet.slice", host)["netspace"]["environments"] for host in ("h1", "h2")]
    return [str(body.get("limits", {}).get("memory")) for environments in slices for body in environments.values()]


def lines(section: str) -> list[list[str]]:
    """Return the ``scripts/lab`` commands in the page's section *section*, each as a list of arguments."""
    (block,) = re.findall(rf"^## {section}\n.*?^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(line[:2] == ["sudo", "scripts/lab"] for line in found), found
    return [line[2:] for line in found]


def answers(lab: Lab, host: str, text: str) -> None:
    """Wait until ``orders`` on *host* answers the request *text* of ``web``."""
    wanted = f"orders@{host}: sealed: thank you, web@h1, for the sealed order of {text}"
    until(lambda: lab.asks(text) == wanted, f"orders on {host} answers", patience=120)


@pytest.mark.parametrize("step", [turn for turn in STEPS if turn in TODAY])
def test_a_master_killed_at_a_step_repeats_no_host(lab: Lab, planned: str, step: str) -> None:
    with rolled_out(lab, planned) as first:
        first.read_to(step)
        lab.do("kill", "master")
        lab.do("start", "master")
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
        command = f"python3 -c {shlex.quote(WRONG_CLOCK.format(seconds=seconds))}"
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
