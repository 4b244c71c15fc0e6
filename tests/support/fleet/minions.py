"""Simulated minions of a fleet. They plan and apply with the library, and get their slices as from the master."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.planning import plans
from netspace.plan import Outcome, Plan, Result, Step


class Minions:
    """Minions, each with the environments that it applied last.

    :ivar has: the environments of each minion.
    :ivar away: minions that don't answer.
    :ivar failing: minions on which each step fails.
    :ivar ailing: the present problems of each minion.
    :ivar unready: the reason why each minion isn't ready to apply.
    :ivar told: functions that were called without waiting, each with its minions.
    :ivar asked: functions that were called, each with its minion.
    """

    def __init__(self, declaration: FleetDeclaration) -> None:
        self.declaration = declaration
        self.has: dict[str, dict[str, Any]] = {}
        self.away: set[str] = set()
        self.failing: set[str] = set()
        self.ailing: dict[str, list[str]] = {}
        self.unready: dict[str, list[str]] = {}
        self.told: list[tuple[str, list[str]]] = []
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda function, minion: None

    def each(
        self,
        function: str,
        calls: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
        timeout: float,
        heard: Callable[[str, Any], None],
    ) -> None:
        for minions, arguments in calls:
            for minion in minions:
                self.asked.append((function, minion))
                self.before(function, minion)
                if minion in self.away:
                    heard(minion, NetspaceError(f"did not answer within {timeout} s"))
                    continue
                try:
                    heard(minion, getattr(self, function.replace(".", "_"))(minion, **arguments))
                except NetspaceError as err:
                    heard(minion, err)

    def tell(self, function: str, minions: Sequence[str]) -> None:
        self.told.append((function, sorted(minions)))

    # -- functions of a minion --------------------------------------------------------
    def netspace_fleet_plan(self, minion: str, generation: str = "", applied: bool = False) -> Any:
        section = self.slice(minion, generation)
        plan = Plan() if applied else self.steps(minion, section)
        return plans.plain(plans.host_plan(minion, section, plan))

    def netspace_fleet_apply(self, minion: str, generation: str = "", expected: list[str] | None = None) -> Any:
        section = self.slice(minion, generation)
        plan = self.steps(minion, section)
        if plan.steps and expected is not None and plans.host_plan(minion, section, plan).digest not in expected:
            raise NetspaceError("its plan is no longer the same")
        if minion in self.failing:
            return plans.outcome(Result(plan, [Outcome(step, "the disk is full") for step in plan.steps]))
        self.has[minion] = dict(section.get("environments", {}))
        return plans.outcome(Result(plan, [Outcome(step) for step in plan.steps]))

    def netspace_fleet_prepare(self, minion: str, generation: str = "", gate: Sequence[str] = ()) -> Any:
        self.slice(minion, generation)
        return self.unready.get(minion, [])

    def netspace_fleet_ailing(self, minion: str, gate: Sequence[str] = ()) -> Any:
        return self.ailing.get(minion, [])

    def slice(self, minion: str, generation: str) -> dict[str, Any]:
        """Return the slice of the declaration that the master gives to a minion."""
        if generation:
            pillar = self.declaration.given.candidate_slice(generation, minion)
        else:
            pillar = self.declaration.answer(minion).pillar
        if pillar is None:
            raise NetspaceError("nothing is declared for this host")
        section: dict[str, Any] = pillar["netspace"]
        return section

    def steps(self, minion: str, section: Mapping[str, Any]) -> Plan:
        has, wanted = self.has.get(minion, {}), section.get("environments", {})
        steps = [Step("environment", name, "remove") for name in has if name not in wanted]
        for name, body in wanted.items():
            old = has.get(name)
            if old != body:
                changes = {"image": {"old": old and old["image"], "new": body["image"]}}
                steps.append(Step("environment", name, "restart" if old else "create", changes))
        return Plan(steps)
