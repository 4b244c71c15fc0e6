"""SIGKILL between any two steps: each state-changing system call of an apply is a fault point.

A cycle has these runs: from nothing, changes, a reboot, a removal, the teardown. Each run is killed at one point, and
then run again without any help. After that, no step is planned, and the host is the same as after a run that was not
killed: nothing is lost or left over, and nothing of other programs is changed. The next cycle uses the next points,
until there are none left.

A step that is done many times (for each environment, for each file of the library) is tried once by default. One day
tries a sixth of all kinds of steps, so six days try all. ``NETSPACE_FAULTS=kinds`` tries each kind, ``all`` each step.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from support import sampling
from support.hosts import faultpoints, faults_host
from support.hosts.faultpoints import Point
from support.hosts.faults_host import Declared, World

from netspace import index

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not faultpoints.SUPPORTED, reason="the tracer knows x86-64 only"),
]

START = time.monotonic()
DAYS = 10
# What an environment's name may be followed by in a path.
NAMES = re.compile(r"(?<=[/.-])[ab](?=[/. ]|$)")
# These leave nothing that a killed process would leave behind: the moment before is tried already.
SAME_AS_BEFORE = ("fsync", "fdatasync", "sync", "flock", "connect")


@dataclass
class Scenario:
    """One way of changing a host.

    :param act: makes the change, in a fork; returns ``steps`` and ``errors``.
    :param then: the declaration afterwards; None: there is none.
    :param before: makes the state in which the scenario starts.
    """

    name: str
    act: Callable[[], dict[str, list[str]]]
    then: Declared | None
    before: Callable[[], object] = lambda: None
    points: list[Point] = field(default_factory=list)
    looks: dict[str, Any] | None = None


def scenarios(world: World) -> list[Scenario]:
    first = world.declared()
    changed = copy.deepcopy(first)
    environments = changed["environments"]
    environments["a"]["env"] = {"TURN": "2"}
    environments["a"]["interface"]["allow"] = [{"direction": "out", "cidr": "198.51.100.0/24", "port": 443}]
    environments["b"]["stop_timeout"] = 3
    changed["links"].append({"from": "b", "to": "a"})
    removed = copy.deepcopy(changed)
    del removed["environments"]["b"]
    removed["links"] = []
    return [
        Scenario("create", lambda: faults_host.converge(first), first),
        Scenario("change", lambda: faults_host.converge(changed), changed),
        Scenario("restore", faults_host.restored, changed, world.reboot),
        Scenario("remove", lambda: faults_host.converge(removed), removed),
        Scenario("teardown", faults_host.teardown, None),
    ]


def chosen(run: faultpoints.Run) -> list[Point]:
    """Return the points to try.

    By setting: all points, the first point of each kind of step, or today's share of these first points.
    """
    points = [point for point in run.changing if not point.what.startswith(SAME_AS_BEFORE)]
    if points and points[-1].what == "write pipe":
        points.pop()  # that is the run's own report
    if sampling.FAULTS == "all":
        return points
    kinds: dict[str, Point] = {}
    for point in points:
        kinds.setdefault(NAMES.sub("ENVIRONMENT", point.what), point)
    return sampling.todays(list(kinds.values()), DAYS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    faults_host.warm_up()
    with World(tmp_path_factory.mktemp("faults")) as made:
        yield made


def succeeded(run: faultpoints.Run) -> str:
    if run.error:
        return run.error
    return "; ".join(run.value["errors"])


def check(world: World, scenario: Scenario) -> list[str]:
    """Run *scenario* again, and check that it succeeds and leaves nothing to do; return the problems."""
    wrong = []
    if error := succeeded(faultpoints.run(scenario.act, traced=False)):
        wrong.append(f"the next run fails: {error}")
    if scenario.then is not None:
        then = scenario.then
        if scenario.before == world.reboot:  # services start in the background
            world.settled(scenario.looks)
        planned = faultpoints.run(lambda: faults_host.converge(then, test=True), traced=False)
        if error := succeeded(planned):
            wrong.append(f"the plan after it fails: {error}")
        elif planned.value["steps"]:
            wrong.append(f"the run after it plans {planned.value['steps']}")
    if differing := world.settled(scenario.looks):
        wrong.append(f"the host differs: {differing}")
    return wrong


def test_a_run_killed_at_any_step_is_repaired_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED", 0.0)  # else the index takes a record or not, as fast as the machine is
    whole = scenarios(world)
    looks = world.look()  # nothing, as after the teardown
    whole[-1].looks = looks
    for scenario in whole:
        scenario.before()
        reference = faultpoints.run(scenario.act)
        assert succeeded(reference) == "", scenario.name
        scenario.points = chosen(reference)
        if scenario.looks is None:
            # What starts in the background (after a reboot) looks as it did before.
            scenario.looks = looks if scenario.before == world.reboot else world.rested()
        looks = scenario.looks
        assert world.settled(looks) == {}, scenario.name
    failures: list[str] = []
    tried = missed = 0
    print(", ".join(f"{scenario.name} {len(scenario.points)}" for scenario in whole), flush=True)
    for turn in range(max(len(scenario.points) for scenario in whole)):
        for place, scenario in enumerate(whole):
            left = [later for later in whole[place:] if turn < len(later.points)]
            if not left:
                if scenario.then is None:
                    assert succeeded(faultpoints.run(scenario.act, traced=False)) == ""
                continue
            scenario.before()
            if turn >= len(scenario.points):
                if left == whole[-1:] and scenario.then is not None and place:
                    continue
                assert succeeded(faultpoints.run(scenario.act, traced=False)) == ""
                continue
            point = scenario.points[turn]
            tried += 1
            print(round(time.monotonic() - START, 1), scenario.name, point, flush=True)
            killed = faultpoints.run(scenario.act, at=point)
            # Threads, or what another did meanwhile, may make a run without that very step; then it came to its end.
            missed += not killed.reached
            if wrong := check(world, scenario):
                print("FAIL", scenario.name, point, wrong, flush=True)
                failures.append(f"{scenario.name}, killed at {point}: " + "\n    ".join(wrong))
    print(f"{tried} fault points: " + ", ".join(f"{scenario.name} {len(scenario.points)}" for scenario in whole))
    print(f"tried in {time.monotonic() - START:.0f} s")
    assert missed <= tried // 20, f"{missed} of {tried} points were not reached"
    assert not failures, f"{len(failures)} of {tried}:\n" + "\n".join(failures)
