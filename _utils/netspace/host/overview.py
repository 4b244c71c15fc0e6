"""Views of a host that change nothing: check of a declaration, table of everything, problems of links."""

from __future__ import annotations

from typing import Any

from netspace.errors import NetspaceError, Problem
from netspace.host import delegation_records
from netspace.host.converge import Converge
from netspace.plan import Plan, Refusal, Result, renamed
from netspace.spec.types import Declaration


class Overview(Converge):
    """Read-only views of a host."""

    def check(self, declared: Declaration) -> list[Problem]:
        """Return why this host could not apply a declaration: the refusals of a test. Changes nothing."""
        return list(dict.fromkeys(problem_of(refusal) for refusal in self.diff(declared).refusals))

    def refuses(self, declared: Declaration, name: str) -> str:
        """Return why this host could not make one environment of a declaration; empty if it could."""
        path = f"netspace:environments:{name}"
        try:
            problems = [one for one in self.check(declared) if f"{one.path}:".startswith(f"{path}:")]
        except NetspaceError as err:
            return str(err)
        return "; ".join(f"{one.path.removeprefix(path).strip(':')}: {one.message}".lstrip(": ") for one in problems)

    def diff(self, declared: Declaration) -> Plan:
        """Return the steps of an apply of a whole declaration, from a test of each kind. Changes nothing."""
        result = Result(Plan())
        for apply in self.each_kind(declared, test=True).values():
            result = result.joined(apply())
        return result.plan

    def kept_messages(self, plan: Plan) -> dict[str, int]:
        """Return how many messages wait for each environment that a plan renames; empty if the broker doesn't tell."""
        former = renamed(plan.steps)
        if not former:
            return {}
        from netspace.link.mail import waiting

        known = waiting.waiting(self.layout, self._linked(), former.values())
        return {new: known[old] for new, old in former.items() if old in known}

    def overview(self) -> dict[str, Any]:
        """Return trust, environments with their interfaces, links, and whether a supervisor runs, for a table."""
        known = self.trust()
        interfaces, links = self.interfaces.list(), self.links.list()
        delegation_records.mark(self.layout, links["links"])
        return {
            "trust": {"level": known.name, "verifier": known.verifier, "reason": known.reason},
            "environments": {
                name: {**entry, "interface": interfaces.get(name, {})}
                for name, entry in self.environments.list().items()
            },
            "links": links,
            "supervised": self.supervisor.attended(),
        }

    def link_health(self) -> dict[str, Any]:
        """Return the problems of links. Messages that wait for a stopped environment are not a problem."""
        known, _ = self.environments.readable()
        stopped = {name for name, record in known.items() if record.spec.state == "stopped"}
        found: dict[str, Any] = self.links.health(stopped)
        return found


def problem_of(refusal: Refusal) -> Problem:
    """Return a refusal as a problem whose path names the refused part.

    If the refusal's message itself begins with a path, this path is used.
    """
    path, parted, message = refusal.message.partition(": ")
    if parted and path.startswith("netspace:"):
        return Problem(path, message)
    places = {
        "environment": f"netspace:environments:{refusal.name}",
        "interface": f"netspace:environments:{refusal.name}:interface",
        "link": f"netspace:links:{refusal.name}",
    }
    return Problem(places.get(refusal.kind, f"netspace:{refusal.kind}"), refusal.message)
