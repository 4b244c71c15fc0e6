"""Apply of a reviewed plan: exactly that plan, or nothing. Also checks whether a host is well afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable

from netspace.errors import NetspaceError
from netspace.host.overview import Overview
from netspace.plan import NAME, RENAME, Plan, Result
from netspace.spec import trust
from netspace.spec.types import Declaration
from netspace.supervision import restart_policy


class PlanChanged(NetspaceError):
    """Error: the host's plan is no longer the reviewed plan."""


class Planned(Overview):
    """Operations of a host that apply a reviewed plan, and that tell whether the host is well afterwards."""

    def apply_planned(self, declared: Declaration, expected: Callable[[Plan], bool] | None) -> Result:
        """Apply a whole declaration if its plan, computed again under the lock, is still the expected one.

        The lock is held from the comparison to the end. Programs other than netspace can still change the host
        meanwhile. So each kind, too, compares the steps that it is about to take with the plan.

        :param expected: returns whether a plan is the reviewed one; None: any plan is accepted. A plan without steps is
            always accepted, since the host is as declared.
        :raises PlanChanged: the plan differs, and nothing was changed. Or a step that isn't in the plan became
            necessary during the apply; then the error's attribute ``applied`` has the steps that were already done.
        """
        with self._lock(False):
            if expected is not None:
                plan = self.diff(declared)
                if plan.steps and not expected(plan):
                    raise PlanChanged(f"its plan is no longer the same ({_brief(plan)}); plan again")
                self._guard = _only(plan)
            try:
                found = Result(Plan())
                for apply in self.each_kind(declared).values():
                    found = found.joined(apply())
                return found
            finally:
                self._guard = None

    def ailing(self, *, health: bool = True, trusted: bool = True) -> list[str]:
        """Return why this host isn't well: unhealthy environments, and those that lack trust. Reads only.

        :param health: whether unhealthy environments count.
        :param trusted: whether lack of trust counts.
        """
        found = []
        for name, row in self.environments.list().items() if health else ():
            if row.get("problem"):
                found.append(f"{name}: {row['problem']}")
                continue
            if row.get("declared_stopped") is True and row["state"] == "stopped":
                continue
            # Once it ran long enough to count as healthy, it doesn't matter how often it was restarted before.
            flapping = row.get("flapping") and time.time() - row["since"] < restart_policy.HEALTHY
            if row["state"] != "running" or row.get("health") not in ("", None, "healthy") or flapping:
                word = "flapping" if flapping else row.get("health") or ""
                found.append(f"{name}: {row['state']}{f', {word}' if word else ''}")
        known, _ = self.environments.readable() if trusted else ({}, {})
        lacking = trust.withheld({name: record.spec for name, record in known.items()}, self.trust()) if known else {}
        return found + [f"{name}: {reason}" for name, reason in sorted(lacking.items())]


def _only(plan: Plan) -> Callable[[Plan], None]:
    """Return a function that raises PlanChanged for a plan with a step that *plan* doesn't have."""
    known = {(step.kind, step.name, step.action) for step in plan.steps}
    for step in plan.steps:
        if step.action == RENAME and NAME in step.changes:  # what a kind does as two steps
            known |= {(step.kind, str(step.changes[NAME]["old"]), "remove"), (step.kind, step.name, "create")}

    def check(about_to: Plan) -> None:
        new = [step for step in about_to.steps if (step.kind, step.name, step.action) not in known]
        if new:
            raise PlanChanged(f"the host changed while its plan was applied: {new[0]} isn't in the plan; plan again")

    return check


def _brief(plan: Plan) -> str:
    count = len(plan.steps)
    return f"now {count} change{'s' if count != 1 else ''}: {plan.steps[0]}, ..." if count else "now it has no changes"
