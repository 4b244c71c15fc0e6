"""Trust gate of a host: which declared things are withheld because the host's trust level is too low, and why."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from netspace.host import delegation_records
from netspace.host.parts import Parts
from netspace.plan import Plan, Refusal, Result
from netspace.spec import delegations, spawns, trust
from netspace.spec.delegations import Granted
from netspace.spec.trust import Trust, TrustVerdict
from netspace.spec.types import Declaration, Environment, Link

MOST_NAMED = 20
"""The most things that a note names."""


class TrustGate(Parts):
    """Operations of a host that decide whether its present trust level permits declared things."""

    def trust(self) -> Trust:
        """Return this host's present trust."""
        from netspace.attestation import result

        return result.trust(self.layout)

    def withheld(self, applied: Mapping[str, Environment]) -> dict[str, str]:
        """Return the applied environments that must not be started, with the reasons.

        If there seem to be any, first appraise the host again, since its last result may have expired.
        """
        if not trust.withheld(applied, self.trust()):
            return {}
        self.attestations.restore()
        return trust.withheld(applied, self.trust())

    def _withheld(self, declared: Declaration, test: bool) -> dict[str, str]:
        """Return the declared environments that are withheld for lack of trust, with the reasons."""
        verdicts = self._verdicts(trust.environments, declared, test)
        return {name: verdict.comment for name, verdict in verdicts.items() if not verdict.allowed}

    def _withheld_so_far(self, names: Collection[str]) -> dict[str, str]:
        """Return the recorded environments among *names* that are withheld for lack of trust, with the reasons."""
        known = self.environments.recorded(names)
        return trust.withheld({name: record.spec for name, record in known.items()}, self.trust())

    def _link_verdicts(self, declared: Declaration, test: bool) -> Mapping[str, TrustVerdict]:
        """Return the verdict on each declared link, by its name.

        A link that the fleet's master ended stays away from a run that began earlier (:mod:`netspace.host.cuts`).
        """
        verdicts = self._verdicts(functools.partial(trust.links, now=time.time()), declared, test)
        if not any(link.to_host or link.from_host for link in declared.links):
            return verdicts
        from netspace.host import cuts

        ended = cuts.refused(self.layout, declared.links)
        return {**verdicts, **dict.fromkeys(ended, TrustVerdict(False, cuts.WHY))} if ended else verdicts

    def _verdicts(
        self, judge: Callable[[Declaration, Trust], dict[str, TrustVerdict]], declared: Declaration, test: bool
    ) -> Mapping[str, TrustVerdict]:
        known = self.trust()
        if test and known.verifier == "none":
            # The host was never appraised. An apply appraises it first, so the verdict is unknown now.
            best = Trust(5, "none", "")
            unsure = judge(declared, known)
            return {
                name: TrustVerdict(verdict.allowed, "depends on the result of the coming appraisal")
                if unsure[name].comment
                else verdict
                for name, verdict in judge(declared, best).items()
            }
        return judge(declared, known)

    def _permitted(self, declared: Declaration, verdicts: Mapping[str, TrustVerdict]) -> tuple[Link, ...]:
        """Return the links that shall exist: permitted ones, and existing ones whose loss of trust is only reported.

        A child has a link only if its parent has it, too. Of the links that programs may delegate, only those are
        included that a program has delegated and whose holder may still delegate.
        """
        there = self._linked().links if any(verdict.on_loss == "report" for verdict in verdicts.values()) else {}
        found = []
        for link in declared.links:
            verdict = verdicts[link.name]
            if verdict.allowed:
                found.append(link)
            elif verdict.on_loss == "report" and link.name in there:
                # Take the declared local name: a name grants nothing, and another link may have the recorded one by
                # now.
                found.append(msgspec.structs.replace(there[link.name], local=link.local))
        return spawns.within(declared, delegations.standing(declared.environments, found, self._granted()))

    def _granted(self) -> dict[str, Granted]:
        """Return the limits of the delegations that need not end now, by the names of their links."""
        due = delegation_records.due(self.layout)
        known = (
            delegation_records.read(self.layout, name) for name in delegation_records.names(self.layout) - due.keys()
        )
        return {one.name: one.granted for one in known if one is not None}


def with_verdicts(result: Result, kind: str, verdicts: Mapping[str, TrustVerdict]) -> Result:
    """Return *result* with a refusal for each withheld thing, and a note for each comment on a permitted thing."""
    refusals = [Refusal(kind, name, v.comment) for name, v in verdicts.items() if not v.allowed]
    told: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        if verdict.allowed and verdict.comment:
            told.setdefault(verdict.comment, []).append(name)
    notes = [f"{kind}{'s' * (len(names) > 1)} {_listed(names)}: {comment}" for comment, names in told.items()]
    plan = Plan(result.plan.steps, [*result.plan.refusals, *refusals], [*result.plan.notes, *notes])
    return Result(plan, result.outcomes)


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
