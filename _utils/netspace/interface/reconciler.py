"""The reconciler of interfaces: compares desired with observed interfaces, and plans the steps.

``plan`` is pure; ``observe`` reads the host, ``apply`` changes it. Every environment gets a network namespace; the
interface's kind (``kinds``) adds the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.interface import claims, kinds
from netspace.interface import record as records
from netspace.interface.apply import ApplyRun
from netspace.interface.changes import InterfaceChange
from netspace.interface.names import sets
from netspace.interface.observe import Observed, ObservedInterface, observe
from netspace.interface.plan import FIREWALL, FORWARDING, DesiredInterfaces, Planner
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Result, Step
from netspace.spec.publish import published
from netspace.spec.types import Interface
from netspace.text import hint

Outcomes = list[Outcome]


class Interfaces:
    """The reconciler of one instance's interfaces and network namespaces. See ``netspace.plan.Reconciler``."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._index = claims.index(layout)
        self._planner = Planner(layout)

    # -- observing ----------------------------------------------------------------
    def names(self, among: Iterable[str] | None = None) -> set[str]:
        """Return the environments that have a record of an interface.

        :param among: look only for these environments; None: for all.
        """
        return files.record_names(self.layout.records(records.KIND), among)

    def recorded(self, names: Collection[str]) -> dict[str, Interface]:
        """Return the applied interfaces of *names*. Names without an interface are left out."""
        return {name: record.interface for name, record in records.some(self.layout, names).items()}

    def observe(
        self,
        desired: DesiredInterfaces | None = None,
        about: Collection[str] | None = None,
        doomed: Collection[str] = (),
    ) -> Observed:
        """Return the observed state of interfaces, and of what *desired* ones need: network devices, modules and ports.

        :param about: the environments that may change; None: all. Environments with a table in their namespace are
            observed, too, since that table lists the other environments. Only the claims of the remaining environments
            are read. See :meth:`concerns_all`.
        :param doomed: environments to remove. Their namespaces are entered only if the removal needs it.
        :raises StateError: a record can't be read.
        """
        volatile = records.Volatile.read(self.layout)
        only = None if about is None else {*about, *volatile.guards}
        declared = desired.interfaces.values() if desired is not None else ()
        return observe(self.layout, self._index, only, declared, doomed, volatile)

    def named(self, without: Collection[str] = ()) -> bool:
        """Return whether a rule of a recorded interface contains a DNS name.

        :param without: environments whose interfaces don't count.
        """
        there = ((name, its) for name, its in self._index.read().items() if name not in without)
        return any(rule.name is not None for _, its in there if '"name":"' in its.rules for rule in its.allow)

    @staticmethod
    def concerns_all(plan: Plan) -> bool:
        """Return whether *plan* needs all interfaces observed, because it switches the host's forwarding.

        At such a switch, the kernel overwrites the setting of each host end.
        """
        return any(step.name == FORWARDING for step in plan.steps)

    def list(self) -> dict[str, dict[str, Any]]:
        """Return every recorded interface, by environment, with its ``state``.

        ``present``: the interface is as recorded. ``missing``: its namespace doesn't exist. ``differs``: the interface,
        or the host's packet filter or forwarding that it relies on, is not as recorded; the key ``differs`` lists the
        differences.
        """
        observed = observe(self.layout, self._index)
        drift = {
            step.name: sorted(step.changes) for step in self._planner.changes(observed.records, set(), observed).steps
        }
        listed = {}
        for name, record in observed.records.items():
            host = (FIREWALL, FORWARDING) if kinds.of(record.interface).FILTER == "host" else ()
            differs = [*drift.get(name, ()), *(one for one in host if one in drift)]
            listed[name] = self._entry(name, record, observed)
            if differs and listed[name]["state"] == "present":
                listed[name] |= {"state": "differs", "differs": differs}
        return listed

    def inspect(self, name: str) -> dict[str, Any]:
        """Return one interface as declared and as observed, with the differences (``drift``).

        :raises NetspaceError: there is no such interface.
        """
        observed = observe(self.layout, self._index, only={name})
        record = observed.records.get(name)
        if record is None:
            raise NetspaceError(f"environment {name} has no interface on this host; {hint(name, observed.claims)}")
        everybody = claims.numbers(observed.claims)
        step = self._planner.step(name, record, observed, everybody, everybody)
        return {
            **self._entry(name, record, observed),
            "declared": records.plain(record.interface),
            "live": observed.live.get(name, ObservedInterface()).ends.facts(),
            "firewall": observed.firewall,
            "drift": {} if step is None else {key: dict(change) for key, change in step.changes.items()},
        }

    def declared(self, name: str) -> Interface:
        """Return the interface of an environment as it was applied; the environment must have one."""
        return records.some(self.layout, [name])[name].interface

    def _entry(self, name: str, record: Record, observed: Observed) -> dict[str, Any]:
        names = sets.described(record, observed.names, observed.own, observed.now)
        return {
            "kind": kinds.name(record.interface),
            "addresses": dict(record.addresses),
            "gateways": dict(record.gateways),
            "host_end": record.host_end,
            **({"publish": list(led)} if (led := published(record.interface)) else {}),
            **({"public_key": record.public_key} if record.public_key else {}),
            **({"names": names} if names else {}),
            "netns": str(self.layout.netns(name)),
            "state": "present" if self.layout.netns_name(name) in observed.namespaces else "missing",
        }

    def plan(self, desired: DesiredInterfaces, observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Return the plan. Interfaces that this host can't have are refused; the others are planned."""
        return self._planner.plan(desired, observed, remove)

    # -- applying -------------------------------------------------------------------------
    def apply(self, steps: Sequence[Step]) -> Outcomes:
        """Apply *steps*, batched. An error is stored in its step's outcome, and the other steps are still done."""
        if not steps:
            return []
        try:
            self._index.begin()
            outcomes = ApplyRun(self.layout).run(steps)
            self._index.note(step.name for step in steps if isinstance(step.data, InterfaceChange))
        finally:
            self._index.end()
        return outcomes

    def own(self, owners: Mapping[str, int]) -> dict[str, str]:
        """Set the owners of the devices in environments' namespaces. Kinds without a device are skipped.

        :param owners: the host's uid of the owner, by environment.
        :return: the errors, by environment.
        """
        known = records.some(self.layout, owners)
        new = {
            name: msgspec.structs.replace(known[name], owner=owner)
            for name, owner in owners.items()
            if name in known and known[name].owner != owner and known[name].interface.DEVICES
        }
        if not new:
            return {}
        plan = self._planner.again(new, self.observe(about=new))
        if self.concerns_all(plan):
            plan = self._planner.again(new, self.observe())
        return {outcome.step.name: outcome.error for outcome in self.apply(plan.steps) if outcome.error}

    def restore(self) -> Result:
        """Restore all interfaces from their records, without the declaration, after a reboot."""
        plan = self.again(self.observe())
        return Result(plan, self.apply(plan.steps))

    def again(self, observed: Observed) -> Plan:
        """Return the plan that makes all interfaces match their records."""
        return self._planner.again(observed.records, observed)
