"""Plan of interfaces: the steps that lead from the observed to the desired interfaces. Pure.

The packet filter and the host's forwarding concern all interfaces. They have separate steps, named ``host:firewall``
and ``host:forwarding`` (no environment can have such a name).
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence

import msgspec

from netspace import files
from netspace.interface import addresses, claims, endpoints, forwarding, host_filter, kinds
from netspace.interface.changes import Firewall, Forwarding, InterfaceChange
from netspace.interface.claims import Claims
from netspace.interface.endpoints import Endpoints
from netspace.interface.firewall import netns_table
from netspace.interface.names import sets
from netspace.interface.observe import Observed, ObservedInterface, expected, place
from netspace.interface.record import Record
from netspace.known import Known, also, without
from netspace.layout import Layout
from netspace.nftables import table as tables
from netspace.nftables.table import Table
from netspace.plan import Plan, Refusal, Step
from netspace.spec import checks, publish
from netspace.spec.publish import published
from netspace.spec.types import Interface, Network

FIREWALL, FORWARDING = "host:firewall", "host:forwarding"
FAMILIES = ("ipv4", "ipv6")
_FEW = 4  # interfaces whose addresses are looked for one by one among those of all
_ADDRESS = {family: operator.attrgetter(family) for family in FAMILIES}


class DesiredInterfaces(msgspec.Struct, frozen=True):
    """The desired interfaces.

    :param network: the ranges from which addresses are allocated.
    :param interfaces: the declared interfaces, by environment.
    """

    network: Network = msgspec.field(default_factory=Network)
    interfaces: Mapping[str, Interface] = msgspec.field(default_factory=dict)


class Planner:
    """Planner of the interfaces of one instance."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def plan(self, desired: DesiredInterfaces, observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Return the plan. Interfaces that this host can't have are refused; the others are planned.

        :param remove: the environments whose interfaces are removed.
        """
        gone = {name for name in remove if name in observed.records}
        wanted = {name: spec for name, spec in desired.interfaces.items() if name not in remove}
        kept = without(observed.claims, gone)
        refused = _refused(wanted, observed)
        # A refused interface keeps its recorded values, and no other may take them. So plan again without it.
        while True:
            wanted = {name: spec for name, spec in wanted.items() if name not in refused}
            new, unaddressed, notes = self._allocated(desired.network, wanted, kept, observed)
            clashing = _clashing(new, kept)
            refused |= clashing
            if not clashing:
                break
        refused |= unaddressed
        notes = [*notes, *_unresolved(new, observed)]
        return _refusing(refused, self.changes(new, gone, observed), notes)

    def _allocated(
        self, network: Network, wanted: Mapping[str, Interface], kept: Mapping[str, Claims], observed: Observed
    ) -> tuple[dict[str, Record], dict[str, str], Sequence[str]]:
        given: dict[str, dict[str, str]] = {name: {} for name in wanted}
        gateways: dict[str, dict[str, str]] = {name: {} for name in wanted}
        refused: dict[str, str] = {}
        notes: list[str] = []
        for family in FAMILIES:
            having = {name: getattr(spec, family) for name, spec in wanted.items() if hasattr(spec, family)}
            # On an external network, netspace allocates no addresses: only declared ones are used.
            asking = {name: having[name] for name in having if kinds.of(wanted[name]).FILTER == "host"}
            foreign = {name: having[name] for name in having if name not in asking and having[name] is not None}
            if not asking and not foreign:
                continue
            if family not in observed.forwarding:
                notes.append(f"this host's kernel has no {family}: interfaces get none")
                continue
            for name, address in foreign.items():
                given[name][family] = str(address.interface.ip)
                gateway = getattr(wanted[name], f"gateway{family[-1]}", None)
                if gateway is not None:
                    gateways[name][family] = str(gateway)
            range_ = getattr(network, family).network
            allocation = _few(range_, family, asking, kept)
            if allocation is None:
                held = dict(zip(kept, map(_ADDRESS[family], kept.values()), strict=True))
                # An interface that changes to an external network gives up its allocated address.
                allocation = addresses.allocate(range_, asking, without(held, wanted.keys() - asking.keys()))
            refused |= allocation.refused
            for name, address in allocation.addresses.items():
                given[name][family] = address
                gateways[name][family] = str(addresses.gateway(range_))
        new = {
            name: self._record(name, spec, given[name], gateways[name], observed.records.get(name))
            for name, spec in wanted.items()
            if name not in refused
        }
        return new, refused, notes

    def _record(
        self, name: str, spec: Interface, given: Mapping[str, str], gateways: Mapping[str, str], old: Record | None
    ) -> Record:
        same = old is not None and kinds.name(old.interface) == kinds.name(spec)
        key, owner = (old.public_key, old.owner) if old is not None and same else ("", 0)
        if kinds.of(spec).FILTER == "host":  # always has an end on the host
            return Record(spec, given, gateways, endpoints.host_name(self.layout.instance, name), key, owner)
        record = Record(spec, given, gateways, "", key, owner)
        outside = expected(self.layout, name, record).outside
        return record if outside is None else msgspec.structs.replace(record, host_end=outside.name)

    def changes(self, new: Mapping[str, Record], gone: Collection[str], observed: Observed) -> Plan:
        """Return the plan that applies the records in *new* and removes those named in *gone*; others stay."""
        removals = [self._removal(name, observed) for name in sorted(gone)]
        near = {name: record for name, record in observed.records.items() if name not in gone} | dict(new)
        after = without(observed.claims, gone)
        after = also(after, {name: claims.of(record) for name, record in new.items()})
        everybody, before = (
            claims.numbers(after),
            claims.numbers(observed.claims),
        )
        steps = (self.step(name, new[name], observed, everybody, before) for name in sorted(new))
        changes = [step for step in steps if step is not None]
        if everybody != before:
            others = {name: record for name, record in near.items() if name not in new}
            changes += self._neighbours(others, observed, everybody, before)
        host = [
            step
            for step in (self._firewall({*new, *gone}, after, observed), self._forwarding(after, near, observed))
            if step
        ]
        notes = [
            f"{key} is set to {change['new']}: this concerns the whole host"
            for step in host
            if step.name == FORWARDING
            for key, change in step.changes.items()
        ]
        return Plan([*removals, *host, *changes], notes=notes)

    def _neighbours(
        self,
        others: Mapping[str, Record],
        observed: Observed,
        everybody: netns_table.Numbers,
        before: netns_table.Numbers,
    ) -> Sequence[Step]:
        """Return steps that update the tables of otherwise unchanged interfaces.

        Such a table lists the addresses of other environments, and these addresses have changed.
        """
        steps = []
        for name, record in sorted(others.items()):
            live = observed.live.get(name, ObservedInterface())
            if not netns_table.is_inside(record) or live.ends.inside is None or name not in observed.volatile.guards:
                continue
            at = place(self.layout, name, record)
            guard = netns_table.wanted(record, expected(self.layout, name, record, at), at, everybody)
            if filtered := _filter(guard, observed, name):
                known = self._guard_before(name, observed, before)
                work = InterfaceChange(
                    record, live.ends, live, kind=kinds.of(record.interface), guard=guard, guard_before=known
                )
                reason = "an environment that its rules cover was added or removed"
                steps.append(Step("interface", name, "change", {"filter": filtered}, reason, work))
        return steps

    def _guard_before(self, name: str, observed: Observed, everybody: netns_table.Numbers) -> tuple[Table, ...]:
        """Return the tables that are loaded in an environment's namespace; empty if they are unknown.

        :param everybody: the addresses that the tables list.
        """
        record, loaded = observed.records.get(name), observed.volatile.guards.get(name, {})
        if record is None or observed.guards.get(name) != "intact":
            return ()
        at = place(self.layout, name, record)
        before = netns_table.wanted(record, expected(self.layout, name, record, at), at, everybody)
        return before if tables.digest(before) == loaded.get("rendered") else ()

    def _removal(self, name: str, observed: Observed) -> Step:
        shown = observed.records[name].shown()
        changes = {key: {"old": value, "new": None} for key, value in shown.items() if value is not None}
        work = InterfaceChange(None, Endpoints(), observed.live.get(name, ObservedInterface()), drop=True)
        return Step("interface", name, "remove", changes, data=work)

    def step(
        self, name: str, record: Record, observed: Observed, everybody: netns_table.Numbers, known: netns_table.Numbers
    ) -> Step | None:
        """Return the step that makes an environment's interface match *record*; None if it already matches.

        :param everybody: the addresses that tables in namespaces must list after the plan.
        :param known: the addresses that these tables list now, by the records.
        """
        old = observed.records.get(name)
        inode = observed.namespaces.get(self.layout.netns_name(name))
        settled = inode is not None and observed.volatile.namespaces.get(name) == inode
        live = observed.live.get(name, ObservedInterface())
        at = place(self.layout, name, record)
        wanted = expected(self.layout, name, record, at)
        changes = files.differences(old.shown(), record.shown()) if old else files.differences({}, record.news())
        action, reason = "change", ""
        some, due = any(_shape(live.ends)), any(_shape(wanted))
        whole = _shape(live.ends) == _shape(wanted)
        fixed = _unchangeable(record.interface, live.ends, wanted) if whole else ""
        make = due and (not whole or bool(fixed))
        if old is None:
            action = "create"
        elif inode is None:
            action, reason = "rebuild", "its namespace is gone"
            changes["netns"] = {"old": None, "new": self.layout.netns_name(name)}
        else:
            if not settled:
                changes["netns"] = {"old": "not set up completely", "new": "set up"}
            before = wanted if old == record else expected(self.layout, name, old)
            changes.update(files.differences(live.ends.facts(), before.facts()))
            if fixed:
                action, reason = "rebuild", f"the kernel can't change {fixed} of a network device in place"
                changes["link"] = {"old": "as it was", "new": f"created again: {reason}"}
            elif make and _shape(before) == _shape(wanted):
                action, reason = "rebuild", "its network device, or one end of it, is gone"
        if not changes:
            # The difference is in values that only follow from the declaration (say, an address's gateway).
            changes = files.differences(live.ends.facts(), wanted.facts())
        guard = netns_table.wanted(record, wanted, at, everybody)
        filtered = _filter(guard, observed, name)
        if filtered and (not changes or filtered["old"] not in ("absent", filtered["new"])):
            changes["filter"] = filtered
        anew = bool(guard) and (make or not settled or _details(live.ends) != _details(wanted))
        if not changes and old == record:
            return None
        work = InterfaceChange(
            record,
            wanted,
            live,
            namespace="create" if inode is None else "keep" if settled else "settle",
            make=make,
            drop=some and (make or not due),
            kind=kinds.of(record.interface),
            parents={link.name: link.index for link in observed.links.values()},
            guard=guard if anew or filtered else None,
            guard_before=self._guard_before(name, observed, known) if filtered and not anew else (),
        )
        return Step("interface", name, action, changes, reason, work)

    def _firewall(self, changed: Collection[str], after: Mapping[str, Claims], observed: Observed) -> Step | None:
        """Return the step that loads the host's table for *after*; None if that table is loaded already.

        :param changed: the environments whose claims may have changed.
        :param after: the claims of all interfaces after the plan.
        """
        loaded, intact = observed.volatile.firewall, observed.firewall == "intact"
        known = observed.weight
        before = _weight(observed.claims) if known is None else known
        mark = claims.mark(_weight(after) if known is None else known + _moved(changed, observed.claims, after))
        if intact and host_filter.loaded(self.layout, after, mark, loaded):
            return None
        if intact and host_filter.loaded(self.layout, observed.claims, claims.mark(before), loaded):
            then, now = host_filter.parts(self.layout, observed.claims, after, changed)
            todo = Firewall(now, then, whole=lambda: self._tables(observed.claims, after))
        else:
            todo = Firewall(host_filter.table(self.layout, after))
            if todo.digest == loaded.get("rendered", "") and observed.firewall == (
                "intact" if todo.digest else "absent"
            ):
                return None
            if not todo.digest and not loaded:
                return None
            if todo.digest and intact:
                # If a run was killed after it wrote records and before it loaded the table, the records describe
                # another table than the loaded one.
                was = host_filter.table(self.layout, observed.claims)
                todo = msgspec.structs.replace(todo, before=was if was.digest == loaded.get("rendered") else None)
        had = {} if todo.before is None else observed.claims
        leading = after if any(its.ports for its in claims.alike(after).values()) else {}
        led = [one for name, its in leading.items() if its.rare and its != had.get(name) for one in its.led]
        known_led = [one for its in had.values() if its.rare for one in its.led] if led else []
        noted = host_filter.notes(self.layout, after, mark) if mark else {}
        todo = msgspec.structs.replace(todo, led=[one for one in led if one not in known_led], notes=noted)
        named = str(loaded.get("mark") or loaded.get("rendered", ""))
        old = {"intact": named[:12], "changed": "changed by hand", "absent": "absent"}
        change = {"old": old[observed.firewall], "new": mark[:12] if todo.table.chains else "absent"}
        if change["old"] == change["new"]:
            change["old"] = "not confirmed"
        return Step("interface", FIREWALL, "change", {"table": change}, data=todo)

    def _tables(self, *known: Mapping[str, Claims]) -> tuple[Table, ...]:
        return tuple(host_filter.table(self.layout, its) for its in known)

    def _forwarding(self, after: Mapping[str, Claims], near: Mapping[str, Record], observed: Observed) -> Step | None:
        needed = {
            family
            for its in claims.alike(after).values()
            if kinds.filtered(its.kind, "host") and (its.rules or its.ports)
            for family in its.forwarded
            if family in its.addresses
        }
        changes = forwarding.changes(needed, observed.forwarding, observed.volatile.forwarding)
        if not changes:
            return None
        reason = (
            "an allow rule or a published port needs packets to be forwarded" if needed else "nothing needs it any more"
        )
        standing = {name: one for name, one in observed.live.items() if one.outside and name in near}
        settings = {
            one.outside: outside.ipv4
            for name, one in standing.items()
            if (outside := expected(self.layout, name, near[name]).outside) is not None
        }
        ours = frozenset(end.name for one in standing.values() if (end := one.ends.outside) is not None)
        return Step("interface", FORWARDING, "change", changes, reason, Forwarding(frozenset(needed), ours, settings))

    def again(self, known: Mapping[str, Record], observed: Observed) -> Plan:
        """Return the plan that restores recorded interfaces. Those that this host can't have are refused."""
        refused = _refused({name: record.interface for name, record in known.items()}, observed)
        possible = {name: record for name, record in known.items() if name not in refused}
        return _refusing(refused, self.changes(possible, (), observed))


def _few(
    range_: addresses.Network, family: str, asking: Mapping[str, object], kept: Mapping[str, Claims]
) -> addresses.Allocation | None:
    """Return the addresses of a few interfaces, found without decoding the records of all other interfaces.

    The result is None if that isn't possible, and all records must be decoded: an interface would lose its address, the
    address that a new one would get by its name may belong to another, or there are too many interfaces.

    :param asking: the interfaces' declared addresses, by environment; None: any address.
    """
    if not isinstance(kept, Known) or len(asking) > _FEW:
        return None
    found = {}
    for name, wanted in asking.items():
        its = kept.get(name)
        if its is not None:
            address = _ADDRESS[family](its)
            if not address or wanted not in (None, address) or not kept.alone(name, address):
                return None
        else:
            address = addresses.first(range_, name) if wanted is None else str(wanted)
            if not address or not kept.lack(msgspec.json.encode(address)):
                return None
        if not addresses.fits(range_, address):
            return None
        found[name] = address
    return addresses.Allocation(found, {}) if len(set(found.values())) == len(found) else None


def _weight(known: Mapping[str, Claims]) -> int:
    return sum(claims.weigh(name, its) for name, its in known.items())


def _moved(changed: Collection[str], before: Mapping[str, Claims], after: Mapping[str, Claims]) -> int:
    """Return the difference that new records of the *changed* interfaces make to the sum of all interfaces' weights."""
    of = [{name: known[name] for name in changed if name in known} for known in (before, after)]
    return _weight(of[1]) - _weight(of[0])


def _unresolved(wanted: Mapping[str, Record], observed: Observed) -> list[str]:
    """Return notes about names in rules that have a problem now. No resolver is asked."""
    found: set[str] = set()
    for record in wanted.values():
        for about in sets.described(record, observed.names, observed.own, observed.now).values():
            if "problem" in about:
                found.add(f"name {about['problem']['text']}")
    return sorted(found)


def _refusing(refused: Mapping[str, str], plan: Plan, notes: Sequence[str] = ()) -> Plan:
    """Return *plan* with the refusals that were found before planning, and with *notes*."""
    refusals = [Refusal("interface", name, message) for name, message in sorted(refused.items())]
    return Plan(plan.steps, refusals, [*notes, *plan.notes])


def _refused(wanted: Mapping[str, Interface], observed: Observed) -> dict[str, str]:
    """Return the interfaces that this host can't have, each with the reason."""
    return {name: reason for name, spec in wanted.items() if (reason := _impossible(spec, observed))}


def _impossible(spec: Interface, observed: Observed) -> str:
    """Return an operator's text on why this host can't have the interface; empty if it can."""
    kind, name = kinds.of(spec), kinds.name(spec)
    if name in observed.missing:
        return f"this host can't have an interface of kind {name}: {observed.missing[name]}"
    lacks = getattr(kind, "lacks", None)
    if reason := lacks(spec, observed.links) if lacks is not None else "":
        return f"this host can't have an interface of kind {name}: {reason}"
    taken = (one.host for one in published(spec) if one.host in observed.taken)
    return "; ".join(
        f"port {port} can't be published: {observed.taken[port]} has it; end that program, or take another port"
        for port in taken
    )


def _clashing(new: Mapping[str, Record], kept: Mapping[str, Claims]) -> dict[str, str]:
    """Return the names in *new* whose interfaces conflict with other interfaces, each with the reason.

    :param kept: the interfaces that stay unchanged. They and all interfaces in *new* are compared with each other.
    """
    found: dict[str, str] = {}
    wanted = {name: its for name, record in new.items() if (its := claims.of(record)).exclusive}
    if not wanted:
        return found
    others = {name: its for name, its in kept.items() if name not in new and its.exclusive}
    for name, _, message in checks.together({**others, **wanted}):
        if name in new:
            found.setdefault(name, message)
    return publish.listening(wanted, others) | found


def _unchangeable(spec: Interface, now: Endpoints, wanted: Endpoints) -> str:
    """Return a text with the differences that the kernel can't change in place; empty if there are none."""
    fixed = getattr(kinds.of(spec), "FIXED", ())
    pairs = ((now.inside, wanted.inside), (now.outside, wanted.outside))
    both = [(is_, due) for is_, due in pairs if is_ is not None and due is not None]
    if any(is_.kind != due.kind for is_, due in both):
        return "the kind"
    differing = [key for key in fixed if any(is_.details.get(key) != due.details.get(key) for is_, due in both)]
    return " and ".join(f"the {key}" for key in differing)


def _filter(guard: Sequence[Table], observed: Observed, name: str) -> dict[str, str]:
    """Return how the table in an environment's namespace differs from *guard* (``old``, ``new``), if at all."""
    loaded = observed.volatile.guards.get(name, {})
    old = str(loaded.get("rendered", ""))[:12] or "absent"
    new = tables.digest(guard)[:12] if guard else "absent"
    if loaded and observed.guards.get(name, "intact") != "intact":
        old = "changed by hand"
    return {} if old == new else {"old": old, "new": new}


def _details(one: Endpoints) -> object:
    return None if one.inside is None else one.inside.details


def _shape(one: Endpoints) -> tuple[bool, bool]:
    return one.inside is not None, one.outside is not None
