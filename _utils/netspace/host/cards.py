"""Cards (``environment.json``) and other files that netspace puts into its environments.

A card lists the recorded links of an environment. In a test of the whole host (``test=True``), it lists the links that
trust permits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.host import child_records, delegation_records, recorded_calls
from netspace.host.parts import CHANGED
from netspace.host.trust_gate import TrustGate
from netspace.plan import Outcome, Plan, Result, Step
from netspace.spec import delegations, peer, spawns, trust
from netspace.spec.types import Broker, Declaration, Environment, Link, LocalBroker

if TYPE_CHECKING:
    from netspace.environment.container.seccomp_file import Profile
    from netspace.environment.desired import DesiredEnvironment
    from netspace.environment.record import Record, RunState
    from netspace.environment.runtimes import Runtime
    from netspace.link.pki.certificates import Access
    from netspace.link.seal.keys import Keys
    from netspace.supervision.service import Service


class Wanted(NamedTuple):
    """An environment as the host wants it, before its files under ``/run/netspace`` are known."""

    spec: Environment
    state: RunState
    profile: Profile | None
    runtime: Runtime


class Cards(TrustGate):
    """Operations of a host on environments together with their cards; a base class of the host's other operations."""

    def _desired(
        self,
        wanted: Mapping[str, Wanted],
        links: tuple[Link, ...],
        access: Access | None = None,
        kept: Collection[str] = (),
        recorded: bool = False,
        opened: Mapping[str, Mapping[str, bytes]] | None = None,
    ) -> dict[str, DesiredEnvironment]:
        """Return the desired environments, with their cards and other injected files.

        :param wanted: specification, state, system call profile and runtime of each environment.
        :param links: the links that the cards list.
        :param access: the environments' access to the broker; None: it is looked up if there are links.
        :param kept: environments that keep running unchanged, because the host lacks trust.
        :param recorded: whether the specifications come from records, which lack the interfaces.
        :param opened: secrets by environment; the environments that it lacks get the secrets that are in memory now.
        """
        from netspace.environment.desired import DesiredEnvironment

        known = self.trust()
        cards: Callable[[str, Collection[Link]], dict[str, Any]] = _alone
        keys: Mapping[str, Keys] = {}
        asking = {link.source for link in links if link.pattern == "request"}
        if links:
            access = access or self.links.access()
            keys = self.links.keys()
            cards = self.links.cards(access, keys)
        level = {"level": known.name, "verifier": known.verifier}
        linked: dict[str, list[Link]] = {}
        for link in links:
            for end in {link.source, link.target}:
                linked.setdefault(end, []).append(link)
        kernels = any(spec.kernel is not None for spec, *_ in wanted.values())
        interfaces = self.interfaces.list() if kernels else {}
        desired = {}
        for name, (spec, state, profile, runtime) in wanted.items():
            own = linked.get(name, [])
            content = {**cards(name, own), "trust": level, **({"audit": True} if spec.audit else {})}
            if spec.values:
                content["values"] = spec.values
            for about in content["peers"]:
                if about["to"] == peer.NAME and spec.host:
                    about["verbs"] = list(spec.host)
            hidden = self._secrets_of(name, spec, opened or {})
            if hidden:
                content["secrets"] = sorted(hidden)
            handed: dict[str, bytes] = {}
            if hidden:
                from netspace.environment.storage import injected_files

                handed.update(injected_files.secrets(hidden))
            handed["environment.json"] = files.encode(content)
            if own and access is not None:
                from netspace.link.seal import keys as seals

                handed.update(access.files(name))
                handed.update(seals.handed(name, own, keys))
            if spec.kernel is not None:
                handed = self._disk(name, handed, interfaces.get(name, {}))
            summary = {"links": sorted(f"{link.name} ({_manner(link, name)})" for link in own), "trust": known.name}
            single = "an answer to one instance could reach the other" if name in asking else ""
            if recorded:
                single = "only an apply of its declaration decides that"
            desired[name] = DesiredEnvironment(
                spec, handed, summary, state, profile, runtime, single, kept=name in kept
            )
        return desired

    def _secrets_of(
        self, name: str, spec: Environment, opened: Mapping[str, Mapping[str, bytes]]
    ) -> Mapping[str, bytes]:
        if name in opened or not spec.secrets:
            return opened.get(name, {})
        from netspace.host import secrets

        return {one: content for one, content in secrets.held(self.layout, name).items() if one in spec.secrets}

    # -- children ---------------------------------------------------------------------
    def _places(self, parent: str) -> list[str]:
        """Return the places (environments that wait for a child) that the applied declaration of *parent* makes."""
        known = self.environments.readable([parent])[0].get(parent)  # damaged: an apply reports it
        return [] if known is None else [place.name for place in spawns.places(parent, known.spec)]

    def _without_ended(self, known: Mapping[str, Record]) -> dict[str, Record]:
        """Leave out the records of children that must end, because an apply by these records would start them again."""
        ended = {one for one in child_records.places(self.layout, known) if child_records.due(self.layout, one)}
        return {name: record for name, record in known.items() if name not in ended}

    def _ended(self, names: Iterable[str]) -> set[str]:
        """Return the names among *names* that belong to children whose program has ended."""
        if not self.layout.records(child_records.KIND).is_dir():
            return set()
        return {place for place in child_records.places(self.layout, names) if child_records.ended(self.layout, place)}

    def _end_children(self, keep: Collection[str]) -> None:
        """End all children, except those of the environments in *keep*."""

    def _free_places(self, test: bool) -> None:
        """Remove the records of children whose place (:mod:`netspace.host.children`) no longer exists."""
        if test or not self.layout.records(child_records.KIND).is_dir():
            return
        for place in child_records.places(self.layout) - self.environments.names():
            child_records.remove(self.layout, place)

    # -- delegations ----------------------------------------------------------------------
    def _lapsed(self, after: Collection[Link], environments: Mapping[str, Environment] | None = None) -> set[str]:
        """Return the delegated links that must end once the links in *after* are in force. Changes nothing.

        :param environments: the environments that may delegate; None: as they were applied.
        """
        known = delegation_records.names(self.layout)
        if not known:
            return set()
        if environments is None:
            there = [one for name in known if (one := delegation_records.read(self.layout, name)) is not None]
            found, _ = self.environments.readable({one.holder for one in there})
            environments = {name: record.spec for name, record in found.items()}
        kept = {link.name for link in delegations.standing(environments, after, self._granted())}
        return known - (kept & delegations.possible(environments).keys())

    def _end_with(self, lapsed: Collection[str], run: Callable[[], Result]) -> Result:
        """End delegated links: sever them at the broker, call *run*, which removes the links, and remove the records.

        If the broker is down, *run* starts it, and the messages that wait on these links are deleted afterwards.
        """
        recorded = self._linked().links
        doomed = [recorded[name] for name in sorted(lapsed) if name in recorded]
        severed = self._severed(doomed)
        result = run()
        if not result.failures and (severed or self._severed(doomed)):
            delegation_records.remove(self.layout, lapsed)
        return result

    def _severed(self, doomed: Collection[Link]) -> bool:
        """Delete the exchanges and waiting messages of links at the broker; return whether that succeeded."""
        if not doomed:
            return True
        try:
            self.links.sever(doomed)
        except NetspaceError:
            return False
        return True

    def _end_delegations(self, keep: Collection[str]) -> None:
        """End all delegations except those of the environments in *keep* (``delegations``)."""

    # -- the host's own peer ------------------------------------------------------------
    def _possible(self, broker: Broker, wanted: tuple[Link, ...]) -> tuple[tuple[Link, ...], str]:
        """Return *wanted*, and the reason why links to the host itself can't be made; the reason is empty if they can.

        If they can't, *wanted* is returned without these links.
        """
        if not any(map(peer.is_link, wanted)):
            return wanted, ""
        why = self._formerly_host() if isinstance(broker, LocalBroker) else peer.SHARED
        return (tuple(link for link in wanted if not peer.is_link(link)) if why else wanted), why

    def _formerly_host(self) -> str:
        """Return why links to the host itself aren't possible yet; empty if they are possible.

        An earlier version allowed an environment with the name ``host``. If it still exists, it could read the requests
        to the host. If it was removed and its mail was kept, the host would get this mail.
        """
        there = self.environments.names([peer.NAME]) or any(
            peer.NAME in (link.source, link.target) and not peer.is_link(link) for link in self._linked().links.values()
        )
        if not there and peer.NAME in self._linked().parked:
            return (
                "mail of an environment that was named host is still kept; delete it with "
                "the state netspace_environment.absent (name: host, purge: True), and apply again"
            )
        if not there:
            return ""
        return "an environment of this host has the name host, which is reserved now; remove it, and apply again"

    def _tell_peer(self, test: bool) -> None:
        """Publish the applied environments and links to the host's own peer, if a link leads to the host.

        The peer ignores all requests of an environment that isn't published.
        """
        if not test and any(map(peer.is_link, self._linked().links.values())):
            self._publish()

    def _peer(
        self,
        test: bool,
        after: Collection[Link],
        declared: Mapping[str, Environment] | None = None,
        version: str | None = None,
    ) -> Result:
        """Start the service that answers requests to the host if a link leads to the host; else remove it.

        Also start the keeper of children if an environment with such a link may have children, delegate, or use keys;
        else remove the keeper.

        :param after: the links after the change. They count only in a test; otherwise the recorded links count.
        :param declared: the environments after the change, by name. For other environments, the records count.
        :param version: the digest of the library's copy that the services run; None: of the copy that an apply makes.
        """
        from netspace.link import host_peer

        asking = [link.source for link in (after if test else self._linked().links.values()) if peer.is_link(link)]
        known = [host_peer.SERVICE, host_peer.KEEPER_SERVICE]
        # After a reboot, a service that a killed run left out has no folder any more.
        if not (asking or host_peer.folder(self.layout).exists() or self.supervisor.observe(known)):
            return Result(Plan())
        from netspace.host.peer import service

        if version is None:
            version = self._library(test, needed=bool(asking))
        self._tell_peer(test)
        spawning = self._spawning(asking, declared or {})
        parts = [
            (service.service(self.layout, version), bool(asking), "it answers as host"),
            (service.keeper(self.layout, version), spawning, "it starts and ends children, delegates, and seals"),
        ]
        result = Result(Plan())
        for made, wanted, why in parts if spawning else reversed(parts):
            result = result.joined(self._peer_service(test, made, wanted, why))
        if not test:
            # Without the right to ask, an environment can't end its children; without a keeper, nobody ends them.
            self._end_children(asking if spawning else ())
            self._end_delegations(asking if spawning else ())
        if not asking and not test and result.ok:  # a run was killed before it removed the folder
            service.forget(self.layout)
        return result

    def _spawning(self, asking: Collection[str], declared: Mapping[str, Environment]) -> bool:
        known, _ = self.environments.readable(set(asking) - declared.keys())
        specs = [declared[name] for name in asking if name in declared] + [one.spec for one in known.values()]
        return any(spec.spawns or spec.delegates or not peer.KEYED.isdisjoint(spec.host) for spec in specs)

    def _peer_service(self, test: bool, made: Service, wanted: bool, why: str) -> Result:
        from netspace.host.peer import service

        need = service.lacking(self.supervisor, made, wanted)
        if need is None:
            return Result(Plan())
        why += CHANGED if need[0] == "restart" else ""
        step = Step("service", self.layout.service(made.name), need[0], {"state": need[1]}, why)
        if test:
            return Result(Plan([step]))
        try:
            service.apply(self.layout, self.supervisor, made, need[0])
        except NetspaceError as err:
            return Result(Plan([step]), [Outcome(step, str(err))])
        return Result(Plan([step]), [Outcome(step)])

    def _disk(self, name: str, handed: Mapping[str, bytes], interface: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the disk image that a unikernel gets instead of files.

        It holds the files in *handed* and a description of the unikernel's interface.
        """
        from netspace.environment.container import unikernel

        if interface.get("addresses"):
            told = {key: interface.get(key) for key in ("addresses", "gateways")}
            handed = {**handed, "interface.json": files.encode({**told, "mac": self.layout.mac(name)})}
        return {unikernel.DISK: unikernel.disk(handed)}

    def _card_links(self, declared: Declaration, whole: bool, test: bool) -> tuple[Link, ...]:
        """Return the links that cards list: the recorded links.

        In a test of the whole host, return the links that trust permits.
        """
        if not (whole and test):
            return tuple(self._linked().links.values())
        links, _ = self._possible(declared.broker, self._permitted(declared, self._link_verdicts(declared, test)))
        return links

    def _as_recorded(self, known: Mapping[str, Record], withheld: Collection[str]) -> dict[str, DesiredEnvironment]:
        """Return recorded environments as desired ones, with cards for the recorded links.

        :param withheld: environments for which the host lacks trust. They are neither started nor changed.
        """
        kept = {name for name in withheld if known[name].state != "stopped"}
        wanted: dict[str, Wanted] = {
            name: Wanted(record.spec, "present" if name in kept else record.state, record.profile, record.runtime)
            for name, record in known.items()
        }
        return self._desired(wanted, tuple(self._linked().links.values()), kept=kept, recorded=True)

    def _forget_secrets(self, removed: Collection[str]) -> None:
        """Forget the secrets of environments that were removed."""
        from netspace.host import secrets

        secrets.forget(self.layout, set(removed) - self.environments.names(removed))

    def _refresh_cards(self, names: Collection[str], test: bool) -> Result:
        """Update the cards of environments whose links were just created or revoked, without a restart."""
        if not names:
            return Result(Plan())
        known = self._without_ended(self.environments.recorded(names))
        if not known:
            return Result(Plan())
        withheld = trust.withheld({name: record.spec for name, record in known.items()}, self.trust())
        result = self._run_environments(self._as_recorded(known, withheld), (), test, programs=False)
        # Refusals are reported when the environments themselves are applied.
        return Result(msgspec.structs.replace(result.plan, refusals=()), result.outcomes)

    def _run_environments(
        self,
        desired: Mapping[str, DesiredEnvironment],
        remove: Collection[str],
        test: bool,
        purge: bool = False,
        gone: Callable[[], None] | None = None,
        programs: bool = True,
    ) -> Result:
        """Observe, plan and apply environments. One observation is enough, since the lock is held.

        :param programs: whether to refuse an environment whose image lacks its program.
        :param gone: called once the programs of removed environments have ended.
        """
        observed = self.environments.observe(
            {*desired, *remove},
            {one.image for one in desired.values()},
            sized=any(one.sized for one in desired.values()),
            version=self._library(test),
        )
        # Only now: a child that ends after it was seen running is not started by this plan.
        ended = self._ended(name for name, one in desired.items() if one.state == "running")
        desired = {name: one for name, one in desired.items() if name not in ended}
        if programs:
            observed = self.environments.with_programs(desired, observed, deep=test)

        def apply(steps: Sequence[Step]) -> list[Outcome]:
            return self.environments.apply(steps, purge=purge, observed=observed, gone=gone)

        result = self._run(self.environments, desired, remove, test, observed, apply)
        if remove and not test:
            self._forget_secrets(remove)
        return result.joined(recorded_calls.converge(self.environments, desired, remove, test))


def _manner(link: Link, name: str) -> str:
    """Return a short description of a link, from the point of view of environment *name*."""
    local = f", as {link.local}" if link.local is not None and link.source == name else ""
    return f"{link.pattern}{', sealed' if link.seal else ''}{local}"


def _alone(name: str, links: Collection[Link]) -> dict[str, Any]:
    """Return the card of an environment on a host without links.

    The card has no broker and no names of broker objects.
    """
    from netspace.link import card
    from netspace.link.topology import names

    return card.card(name, links, "", names.PLAIN)
