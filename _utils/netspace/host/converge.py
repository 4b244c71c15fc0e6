"""Convergence of a host: attestation, interfaces, links and environments, as declared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from netspace.environment import runs
from netspace.errors import Problem, SpecError
from netspace.host import child_records
from netspace.host.cards import Cards, Wanted
from netspace.host.trust_gate import with_verdicts
from netspace.plan import Plan, Refusal, Result
from netspace.spec import checks, delegations, peer, renames, spawns, trust
from netspace.spec.types import Attestation, Broker, Declaration, Environment, Interface, Link, LocalBroker

if TYPE_CHECKING:
    from netspace.environment.record import RunState
    from netspace.environment.runtimes import Runtime


LEDGER = "ledger"
"""Name under which steps of the kind ``attestation`` concern the ledger of runs."""


class Converge(Cards):
    """Operations of a host that apply the four kinds: attestation, interfaces, links and environments."""

    def each_kind(self, declared: Declaration, *, test: bool = False) -> dict[str, Callable[[], Result]]:
        """Return the functions that apply each kind's part of a whole declaration, by kind; call them in this order."""
        return {
            "attestation": lambda: self.converge_attestation(declared.attestation, test=test),
            "interface": lambda: self.converge_interfaces(declared, whole=True, test=test),
            "link": lambda: self.converge_links(declared, whole=True, test=test),
            "environment": lambda: self.converge_environments(declared, whole=True, test=test),
        }

    # -- attestation -----------------------------------------------------------
    def converge_attestation(self, settings: Attestation, *, test: bool = False) -> Result:
        """Appraise the host if its last attestation result is no longer valid.

        The result has a refusal (a failure) if the host's policy is ``require`` and its level is below the minimum.
        """
        with self._lock(test):
            result = self._run(self.attestations, settings, (), test)
            if any(outcome.step.name == LEDGER for outcome in result.outcomes):  # a new one lacks running programs
                from netspace.host import ledger

                ledger.settle(self.layout, self.supervisor)
            self._tell_peer(test)
        if result.failures or (test and result.plan.steps):
            return result
        verdict = trust.judge(settings, self.trust())
        return with_verdicts(result, "attestation", {"host": verdict})

    # -- interfaces --------------------------------------------------------------
    def converge_interfaces(self, declared: Declaration, *, whole: bool = False, test: bool = False) -> Result:
        """Create or change the namespace and interface of each declared environment."""
        with self._lock(test):
            self._tidy(test)
            # A declaration of an interface alone doesn't say which trust its environment requires, so ask the record.
            withheld = self._withheld(declared, test) if whole else self._withheld_so_far(declared.environments)
            asserted = self._asserted(declared, declared.interfaces, whole, test)
            return asserted.joined(self._interfaces(declared, whole, test, withheld))

    def connect(self, declared: Declaration) -> Result:
        """Create the namespaces of an audit's twins; the caller holds the lock (:mod:`netspace.host.audit`)."""
        return self._interfaces(declared, False, False, {})

    def _interfaces(self, declared: Declaration, whole: bool, test: bool, withheld: Mapping[str, str]) -> Result:
        from netspace.interface.plan import DesiredInterfaces

        there = self.interfaces.recorded(withheld)
        kept = {name: trust.narrowed(there[name], declared.interfaces[name]) for name in withheld.keys() & there.keys()}
        desired = DesiredInterfaces(declared.network, {**declared.interfaces, **kept})
        if whole:
            remove = self.interfaces.names() - set(declared.environments)
            former = renames.removed(declared.environments, remove)
            was = self.interfaces.recorded(former.values()) if former else {}
            result = self._run(self.interfaces, desired, remove, test, self.interfaces.observe(desired, doomed=remove))
            if former:
                from netspace.host import renaming  # few environments have a former name

                result = renaming.joined(
                    result, former, lambda name: renaming.differing(was.get(former[name]), desired.interfaces[name])
                )
        else:
            result = self._run_interfaces(desired, (), test)
            remove = set()
        others = {*desired.interfaces, *remove}
        result = result.joined(self._names(desired.interfaces.values(), others, test))
        waiting = [name for name in sorted(kept) if kept[name] != declared.interfaces[name]]
        if whole:  # The same apply refuses the environment later, so a note is enough here.
            told = Plan(notes=[f"interface {name}: its change waits for trust: {withheld[name]}" for name in waiting])
        else:
            told = Plan(refusals=[Refusal("interface", name, withheld[name]) for name in waiting])
        return result.joined(Result(told))

    def _asserted(self, declared: Declaration, interfaces: Mapping[str, Interface], whole: bool, test: bool) -> Result:
        """Refuse a partial declaration that would violate an assertion (``never``).

        A partial declaration comes from a single state. A whole declaration is checked earlier. A dry run only notes
        the violation, because things that contribute to it may be removed before the apply.

        :raises SpecError: an assertion would be violated.
        """
        from netspace.host import reach

        violated = () if whole else reach.violations(self, declared.never, interfaces, declared.links)
        if violated and not test:
            raise SpecError(violated)
        return Result(Plan(notes=[str(problem) for problem in violated]))

    # -- links ---------------------------------------------------------------------
    def converge_links(self, declared: Declaration, *, whole: bool = False, test: bool = False) -> Result:
        """Create or change the declared links that trust permits, and revoke withheld ones."""
        with self._lock(test):
            clashes = () if whole else self._clashes(declared.links)
            if clashes and not test:
                raise SpecError(clashes)
            asserted = self._asserted(declared, {}, whole, test)
            declared = peer.with_links(declared)
            attended = asserted.joined(self._attend(test))
            # Links that conflict with these may be removed before the apply, so a dry run only notes the conflict.
            attended = attended.joined(Result(Plan(notes=[f"link {clash}" for clash in clashes])))
            verdicts = self._link_verdicts(declared, test)
            permitted = self._permitted(declared, verdicts)
            after = {link.name: link for link in permitted}
            if not whole:
                there = self._linked().links.items()
                after = {**{name: link for name, link in there if name not in verdicts}, **after}
            lapsed = self._lapsed(after.values(), declared.environments if whole else None)

            def links() -> Result:
                return self._links(declared.broker, permitted, verdicts.keys() | lapsed, whole, test)

            result = links() if test or not lapsed else self._end_with(lapsed, links)
            result = with_verdicts(result, "link", verdicts)
            if not whole:
                ends = {end for link in declared.links for end in (link.source, link.target)}
                ends |= {end for name in lapsed for end in name.split(".")}
                result = result.joined(self._refresh_cards(ends, test))
                if not isinstance(declared.broker, LocalBroker):
                    result = result.joined(self._peer(test, ()))
            self._tell_peer(test)
            return attended.joined(result)

    def _clashes(self, declared: Collection[Link]) -> list[Problem]:
        """Return why links in a partial declaration can't be made."""
        return [*self._name_clashes(declared), *self._of_children(declared), *self._of_delegations(declared)]

    def _of_delegations(self, declared: Collection[Link]) -> list[Problem]:
        """Return errors for links in a partial declaration that only a program's request (``delegate``) may make."""
        senders = {link.source for link in declared}
        holders = {link.source for link in self._linked().links.values() if link.target in senders}
        known, _ = self.environments.readable(holders)
        wanted = delegations.possible({name: record.spec for name, record in known.items()})
        return [
            Problem(link.name, f"exists by a delegation of {wanted[link.name].holder}; leave the link out")
            for link in declared
            if link.name in wanted
        ]

    def _name_clashes(self, declared: Collection[Link]) -> list[Problem]:
        """Return the conflicts between the local names (``as``) of declared links and those of recorded links."""
        links = {**self._linked().links, **{link.name: link for link in declared}}
        return [Problem(f"{name}:as", message) for name, message in checks.local_names(links.values()).items()]

    def _of_children(self, declared: Collection[Link]) -> list[Problem]:
        """Return an error for each link in a partial declaration that has a child at one of its ends."""
        ends = {end: link for link in declared for end in (link.source, link.target)}
        return [
            Problem(ends[end].name, f"{end} is a child, whose template declares its links; leave this out")
            for end in self._parents_of(ends)
        ]

    def _names_of_children(self, names: Collection[str]) -> list[Problem]:
        """Return an error for each environment in a partial declaration that has the name of a child's place."""
        return [
            Problem(name, f"is the name of a child of {parent}, which its template makes; choose another name")
            for name, parent in self._parents_of(names).items()
        ]

    def _parents_of(self, names: Collection[str]) -> dict[str, str]:
        """Return the recorded parent of each environment in *names* that is a place for children."""
        known, _ = self.environments.readable({one for name in names for one in spawns.possible_parents(name)})
        specs = {name: record.spec for name, record in known.items()}
        return {name: parent for name in names if (parent := spawns.parent_of(name, specs.get))}

    def _links(
        self, broker: Broker, permitted: tuple[Link, ...], considered: Collection[str], whole: bool, test: bool
    ) -> Result:
        known = self._linked()
        if not permitted and not known.links and not known.parked:
            return Result(Plan())
        own = isinstance(broker, LocalBroker)
        others, why = self._possible(broker, permitted)
        if why:
            refused = [Refusal("link", link.name, why) for link in permitted if peer.is_link(link)]
            return self._links(broker, others, considered, whole, test).joined(Result(Plan(refusals=refused)))
        from netspace.link.reconciler import DesiredLinks

        there = set(known.links)
        kept = {link.name for link in permitted}
        remove = there - kept if whole else (there & set(considered)) - kept
        if not own:  # links to the host itself don't move to a broker that hosts share
            remove |= {name for name, link in known.links.items() if peer.is_link(link)}
        return self._run(self.links, DesiredLinks(broker, permitted), remove, test)

    def _broker(self, declared: Declaration) -> Broker:
        """Return the broker for links of a partial declaration.

        This is the recorded broker if there are recorded links, else the declared one.
        """
        recorded = self._linked()
        return recorded.broker if recorded.links and recorded.broker is not None else declared.broker

    def _host_links(self, declared: Declaration, test: bool) -> Result:
        """Create and revoke the links to the host itself, for environments in a partial declaration.

        :raises SpecError: one of these environments already uses ``host`` as the local name of another environment.
        """
        names = {peer.link(name).name for name in declared.environments}
        recorded = self._linked()
        there = {name for name in names & set(recorded.links) if peer.is_link(recorded.links[name])}
        wanted = msgspec.structs.replace(declared, links=peer.links(declared.environments))
        if not there and not wanted.links:
            return Result(Plan())
        clashes = self._name_clashes(wanted.links)
        if clashes and not test:
            raise SpecError(clashes)
        verdicts = self._link_verdicts(wanted, test)
        broker = self._broker(declared)
        result = self._links(broker, self._permitted(wanted, verdicts), there | verdicts.keys(), False, test)
        result = result.joined(Result(Plan(notes=[f"link {clash}" for clash in clashes])))
        return with_verdicts(result, "link", verdicts)

    # -- environments ------------------------------------------------------------------
    def converge_environments(
        self, declared: Declaration, *, whole: bool = False, test: bool = False, state: RunState = "running"
    ) -> Result:
        """Create or change the declared environments, and bring them to *state*.

        :param state: ``running``, ``stopped``, or ``present`` (neither start nor stop them).
        """
        with self._lock(test):
            taken = [] if whole else self._names_of_children(declared.environments)
            if taken and not test:
                raise SpecError(taken)
            given = {name: spec for name, spec in declared.interfaces.items() if spec and not spec.NONE}
            asserted = self._asserted(declared, given, whole, test)
            attended = asserted.joined(self._attend(test)).joined(Result(Plan(notes=[str(one) for one in taken])))
            self._tidy(test)
            if whole and not test and runs.kept(self.layout):
                from netspace.host import ledger

                ledger.note(self.layout, declared)
            if whole:
                declared = peer.with_links(declared)
            namespaces = Result(Plan())
            if not whole:
                # With a whole declaration, converge_interfaces has created the namespaces already.
                there = self.interfaces.names(declared.environments)
                lacking = {
                    name: spec
                    for name, spec in declared.environments.items()
                    if name not in there or _kind(spec) != "none"
                }
                if lacking:
                    only = msgspec.structs.replace(declared, environments=lacking, links=())
                    namespaces = self._interfaces(only, False, test, self._withheld(only, test))
                namespaces = namespaces.joined(self._host_links(declared, test))
            result = attended.joined(namespaces.joined(self._environments(declared, whole, test, state)))
            if whole:
                after = self._card_links(declared, whole, test)
            else:
                others = (link for link in self._linked().links.values() if link.source not in declared.environments)
                after, _ = self._possible(self._broker(declared), (*others, *peer.links(declared.environments)))
            return result.joined(self._peer(test, after, declared.environments))

    def _environments(self, declared: Declaration, whole: bool, test: bool, state: RunState) -> Result:
        from netspace.environment.container import seccomp_file

        looked = _runtimes(declared)
        verdicts = self._verdicts(trust.environments, declared, test)
        links = self._card_links(declared, whole, test)
        access = self.links.access(declared.broker if whole and test and declared.links else None) if links else None
        there = self.environments.recorded([name for name, verdict in verdicts.items() if verdict.runs_on])
        wanted: dict[str, Wanted] = {}
        kept = set()
        for name, spec in self._with_children(declared).items():
            # Record the requirement in force, for later starts without the declaration.
            required = trust.requirement(spec, declared.attestation)
            record = there.get(name) if verdicts[name].runs_on else None
            # Stopping needs no trust.
            if record is not None and record.state != "stopped" and spec.state != "stopped":
                as_it_is = msgspec.structs.replace(record.spec, attestation=required, state=spec.state)
                wanted[name] = Wanted(as_it_is, "present", record.profile, record.runtime)
                kept.add(name)
                continue
            wanted[name] = Wanted(
                msgspec.structs.replace(spec, attestation=required),
                state if verdicts[name].allowed and spec.state != "stopped" else "stopped",
                seccomp_file.look(spec.seccomp),
                looked[name],
            )
        remove = self.environments.names() - set(declared.environments) if whole else ()
        withheld = {name for name, verdict in verdicts.items() if not verdict.allowed}
        opened, told = self._secrets({name: wanted[name].spec for name in wanted.keys() - kept}, withheld, test)
        wanted = {name: one._replace(spec=_without_ciphertext(one.spec)) for name, one in wanted.items()}
        desired = self._desired(wanted, links, access, kept, opened=opened)
        former = renames.removed(declared.environments, remove)
        was = self.environments.readable(former.values())[0] if former else {}
        result = self._run_environments(desired, remove, test)
        if former:
            from netspace.host import renaming

            mailed = {end for link in links for end in link.here}
            result = renaming.joined(
                result,
                former,
                lambda name: renaming.differences(was.get(former[name]), desired[name].spec),
                lambda name: renaming.reason(former[name], name in mailed),
            )
        result = told.joined(result)
        self._free_places(test)
        return with_verdicts(result, "environment", trust.told(declared, verdicts))

    def _secrets(
        self, wanted: Mapping[str, Environment], withheld: Collection[str], test: bool
    ) -> tuple[Mapping[str, Mapping[str, bytes]], Result]:
        """Read or open the secrets of these environments, and hold them in memory (not in a test).

        :param withheld: environments that get none, because the host lacks the trust that they demand.
        :return: the secrets, by environment; and a result with the reasons why others are withheld.
        """
        known = set(self.environments.names(wanted)) if self.layout.records("secrets").is_dir() else set()
        todo = {name: spec for name, spec in wanted.items() if spec.secrets or name in known}
        if not todo:
            return {}, Result(Plan())
        from netspace.host import secrets

        has = self.trust()
        if test and has.verifier == "none":  # an apply appraises the host first
            has = trust.Trust(5, "none", "")
        given = {name: spec for name, spec in todo.items() if name not in withheld}
        taken = secrets.take(self.layout, given, has, self.source, self.minion, test=test)
        none: dict[str, dict[str, bytes]] = {name: {} for name in todo.keys() & set(withheld)}
        if not test:
            secrets.hold(self.layout, taken)
            secrets.withdraw(self.layout, none)
        return {**taken.opened, **none}, taken.result

    def _with_children(self, declared: Declaration) -> dict[str, Environment]:
        """Return the declared environments; those in which a child runs get the child's state and values.

        If a child must end (``child_records.over``), or its template has changed since its start, its environment stays
        as declared: stopped.
        """
        from netspace.environment import record as records

        found = dict(declared.environments)
        taken = child_records.places(self.layout) & found.keys()
        there, _ = self.environments.readable(taken) if taken else ({}, {})
        for name in sorted(taken & there.keys()):
            child, was = child_records.read(self.layout, name), there[name].spec
            if child is None or child_records.over(self.layout, name, child):
                continue
            now = msgspec.structs.replace(found[name], values=child.values, state="running")
            required = trust.requirement(now, declared.attestation)
            if records.own(was) == records.own(msgspec.structs.replace(now, attestation=required)):
                found[name] = now
        return found


def _without_ciphertext(spec: Environment) -> Environment:
    """Return a specification without the ciphertexts of its secrets, which differ after each encryption."""
    if not spec.secrets:
        return spec
    from netspace.spec import secrets

    return msgspec.structs.replace(spec, secrets=secrets.named(secrets.of(spec)))


def _runtimes(declared: Declaration) -> dict[str, Runtime]:
    """Return the runtime of each declared environment. Each runtime is looked up once."""
    from netspace.environment import runtimes

    names = {name: checks.used(spec, declared.runtimes) for name, spec in declared.environments.items()}
    found = {one: runtimes.look(one, declared.runtimes.settings.get(one, {})) for one in set(names.values())}
    return {name: found[one] for name, one in names.items()}


def _kind(spec: Environment) -> str:
    from netspace.interface import kinds

    return kinds.name(spec.interface) if spec.interface is not None else "none"
