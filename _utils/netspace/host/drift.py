"""Drift of a host: its differences from the records of the last apply. Changes nothing.

Drift is computed as the plan of an apply that takes the records as its declaration. So it shows manual changes, missing
things and ended programs. It needs neither pillar nor master. A change of the declaration, or of an image's source,
isn't drift.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from netspace import library_copy
from netspace.errors import NetspaceError
from netspace.host.cards import Cards
from netspace.plan import Plan, Refusal, Result
from netspace.spec import trust


class Drift(Cards):
    """Operation of a host that compares it with its records."""

    def drift(self) -> Plan:
        """Return the steps that would restore the state of the last apply.

        If the record of a kind is damaged, the plan has a refusal for this kind.
        """
        kinds: tuple[tuple[str, Callable[[], Plan]], ...] = (
            ("service", lambda: self._attend(test=True).plan),
            ("attestation", lambda: self.attestations.again(self.attestations.observe())),
            ("interface", lambda: self.interfaces.again(self.interfaces.observe())),
            ("link", self._drift_of_links),
            ("environment", self._drift_of_environments),
            ("service", self._drift_of_peer),
        )
        found = Result(Plan())
        with self._lock(test=True):
            for kind, compare in kinds:
                try:
                    plan = compare()
                except NetspaceError as err:
                    plan = Plan(refusals=[Refusal(kind, "", str(err))])
                found = found.joined(Result(plan))
        return found.plan

    def _drift_of_peer(self) -> Plan:
        # A new version of netspace that no apply has brought to the host yet is no drift.
        version = library_copy.installed(self.layout)
        return self._peer(True, self._linked().links.values(), version=version).plan

    def _drift_of_links(self) -> Plan:
        if not self._linked().links:
            return Plan()
        return self.links.again(self.links.observe())

    def _drift_of_environments(self) -> Plan:
        known = self._without_ended(self.environments.recorded())
        if not known:
            return Plan()
        withheld = trust.withheld({name: record.spec for name, record in known.items()}, self.trust())
        applied = {
            # An operator's start or stop changes a record's state, but not its specification.
            name: record
            if record.state == "present" or name in withheld
            else msgspec.structs.replace(record, state=record.spec.state)
            for name, record in known.items()
        }
        desired = self._as_recorded(applied, withheld)
        seen = self.environments.observe(sized=any(one.sized for one in desired.values()))
        # The last apply used an image, not the image's source. So a changed source is no drift.
        return self.environments.plan(desired, msgspec.structs.replace(seen, sources={}))
