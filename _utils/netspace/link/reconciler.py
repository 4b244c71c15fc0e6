"""The reconciler of one host's links: observe, plan, apply (see ``netspace.plan``).

A run records new links in ``<records>/link/applied.json`` before it changes the broker, and removes revoked links from
the record afterwards. So if a run is killed, the next run finishes its work. A run reads the broker's definitions once
and compares them as a whole. It deletes revoked objects first, then imports all differing objects at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import card, health, status
from netspace.link import plan as planning
from netspace.link.apply import ApplyRun, complete
from netspace.link.broker import access as reach
from netspace.link.broker import listening, loopback, node
from netspace.link.broker.management import Management
from netspace.link.forwarder import haproxy, process
from netspace.link.mail import parked
from netspace.link.pki import authority, certificates, passwords, renewer
from netspace.link.pki.certificates import Access
from netspace.link.plan import FORWARDER, KIND, DesiredLinks, LinkChange, Observed
from netspace.link.record import Record, forget, read
from netspace.link.seal import bundle as bundles
from netspace.link.seal import endorser, peers
from netspace.link.seal import keys as seals
from netspace.link.topology import names, objects, renaming
from netspace.link.topology.names import Names
from netspace.plan import Outcome, Plan, Refusal, Step
from netspace.spec.types import Broker, Link, LocalBroker
from netspace.supervision.service import Supervisor

__all__ = ["KIND", "DesiredLinks", "Links", "Observed", "Record"]


def _silent(_: str) -> None:
    """Ignore a progress report."""


class Links:
    """The reconciler of the links of one instance.

    :param supervisor: runs the forwarder, and the broker if it is netspace's own.
    :param progress: called with a text about the present activity of a run, such as waiting for the broker.
    """

    def __init__(self, layout: Layout, supervisor: Supervisor, progress: Callable[[str], None] = _silent) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.progress = progress

    # -- the record: asks no broker -------------------------------------------
    def names(self) -> set[str]:
        """Return the names ``<from>.<to>`` of the links that were applied."""
        return set(read(self.layout).links)

    def recorded(self) -> list[Link]:
        """Return the links that were applied."""
        return list(read(self.layout).links.values())

    def recorded_broker(self) -> Broker:
        """Return the broker that was applied; if none was, netspace's own with default settings."""
        return read(self.layout).broker or LocalBroker()

    @property
    def called(self) -> Names:
        """The recorded names of the broker's objects; without a record, the names of netspace's first versions."""
        return names.used(self.layout, self.recorded_broker())

    def cards(
        self, access: Access | None = None, keys: Mapping[str, seals.Keys] | None = None
    ) -> Callable[[str, Collection[Link]], dict[str, Any]]:
        """Return a function that makes an environment's card (``environment.json``) from its name and links.

        :param access: the log-in of environments; None: the current one.
        :param keys: the keys for sealed links; None: they are read.
        """
        record = read(self.layout)
        called = names.used(self.layout, record.broker or LocalBroker())
        known, private = access or self.access(), self.keys() if keys is None else keys
        others = peers.read(self.layout, known.broker, record.links.values())

        def tell(name: str, links: Collection[Link]) -> dict[str, Any]:
            login = (known.identity(name), known.broker)
            content = card.card(name, links, known.vhost, called, record.former, *login, record.passed)
            return seals.told(content, links, private, others)

        return tell

    def keys(self) -> Mapping[str, seals.Keys]:
        """Return the keys for sealed links, by environment."""
        return seals.read_all(self.layout)

    def renew_keys(self, environments: Collection[str], lead: float = seals.LEAD) -> list[str]:
        """Make new keys for the environments in *environments* that have keys; return their names.

        The caller must then rewrite the cards, which still have the old keys.
        """
        links = self.recorded()
        own = endorser.read(self.layout)
        return seals.renew(self.layout, environments, time.time(), lead, seals.promises(own, links))

    def handed(self) -> Callable[[str], dict[str, bytes]]:
        """Return a function that returns the files beside an environment's card: its log-in and its seal keys."""
        access, keys = self.access(), self.keys()
        linked: dict[str, list[Link]] = {}
        for link in self.recorded():
            for end in link.here:
                linked.setdefault(end, []).append(link)
        return lambda name: {**access.files(name), **seals.handed(name, linked.get(name, ()), keys)}

    # -- keys of other hosts ---------------------------------------------------
    def seal_bundles(self) -> tuple[dict[str, str], list[str]]:
        """Make this host's bundle of keys for each other host with sealed links to or from this one.

        :return: the bundles by the hosts' names, and the environments whose keys were renewed for them. The caller must
            then rewrite the cards, which still have the old keys.
        """
        links, broker = self.recorded(), self.recorded_broker()
        if not peers.hosts(links):
            return {}, []
        now = time.time()
        own = endorser.ensure(self.layout, authority.read(self.layout), now)
        promises = seals.promises(own, links)
        renewed = seals.ensure(self.layout, promises, now, promises)
        keys, others = self.keys(), peers.read(self.layout, broker, links)
        made = {}
        for host in peers.hosts(links):
            found = others.of(host)
            readers = {name: seals.promised(keys[name], now) for name in peers.readers(links, host)}
            knows = "" if found is None else found.endorser["kid"]
            made[host] = bundles.make(own, others.hosts[host], knows, readers, now)
        return made, renewed

    def adopt_seals(self, bundle: str) -> tuple[str, bool]:
        """Check and store the bundle of another host; return that host's name, and whether its content is new.

        The caller must then rewrite the cards, which still have the old keys.

        :raises NetspaceError: a check of the bundle failed, or that host has no sealed links to or from this one.
        """
        links, broker, known = self.recorded(), self.recorded_broker(), authority.read(self.layout)
        if known is None or not isinstance(broker, LocalBroker) or not peers.hosts(links):
            raise NetspaceError("there are no sealed links to or from other hosts")
        return bundles.adopt(self.layout, broker, peers.hosts(links), known, bundle, time.time())

    def access(self, declared: Broker | None = None) -> Access:
        """Return the log-in of environments at the applied broker.

        :param declared: for a test, the broker that is declared instead; None: use the applied broker.
        """
        broker = declared or self.recorded_broker()
        known = authority.read(self.layout) if isinstance(broker, LocalBroker) else None
        return Access(self.layout, broker, reach.vhost(self.layout, broker), known)

    def renew(self, *, replace: bool = False, distrust: bool = False) -> set[str]:
        """Issue certificates that are due or missing; return the environments that got a new one.

        No service is started or stopped, and no connection ends.

        :param replace: whether to replace the authority first.
        :param distrust: whether to stop trusting previous authorities, and to delete the endorser's key, so that a new
            one is made.
        """
        record = read(self.layout)
        if not record.links or record.broker is None:
            return set()
        change = ApplyRun(self.layout, self.supervisor, self.progress)
        renewed = change.issue(
            record.broker, objects.members(record.links.values()), replace=replace, distrust=distrust
        )
        if distrust:
            endorser.remove(self.layout)
        return renewed

    def endorse(self) -> list[str]:
        """Renew the endorsements of signing keys for other hosts; return the environments that got a new one.

        The keys themselves and the cards don't change.
        """
        links, now = self.recorded(), time.time()
        if not peers.hosts(links):
            return []
        own = endorser.ensure(self.layout, authority.read(self.layout), now)
        return seals.endorse(self.layout, now, seals.promises(own, links))

    # -- observe, plan, apply --------------------------------------------------
    def observe(self) -> Observed:
        """Read the records, the state of our services and, if the broker runs, its definitions.

        If no link is recorded, only the record is read.
        """
        record = read(self.layout)
        if record.broker is None or not record.links:
            return Observed(record)
        services = self.supervisor.observe([node.NODE, process.NAME, renewer.NAME])
        state, detail, definitions, flooded = reach.ask(self.layout, record, services)
        config, carrier = process.current(self.layout), services.get(process.NAME)
        now = time.time()
        members = objects.members(record.links.values())
        unnamed = ""
        try:
            called = names.declared(self.layout, record.broker)
        except NetspaceError as err:  # with the recorded names, links can still be revoked
            called, unnamed = names.used(self.layout, record.broker), str(err)
        return Observed(
            record=record,
            pid=services[node.NODE].pid if node.NODE in services else 0,
            broker=state,
            detail=detail,
            definitions=definitions,
            flooded=flooded,
            ended=reach.ended(self.layout, record.broker, definitions) if state == "running" else (),
            names=called,
            unnamed=unnamed,
            drained=reach.drained(self.layout, record, now) if state == "running" else (),
            emptied=parked.emptied(self.layout, record) if state == "running" else (),
            now=now,
            passwords=passwords.read_all(self.layout),
            installed=not isinstance(record.broker, LocalBroker) or node.installed(self.layout, record.broker),
            forwarder=carrier,
            silent=haproxy.silent(self.layout) if carrier is not None and carrier.state == "running" else "",
            config=config,
            namespaces=process.namespaces(self.layout, objects.entered(record.links.values())),
            keys=seals.read_all(self.layout),
            others=peers.read(self.layout, record.broker, record.links.values()),
            identities=certificates.observe(self.layout, record.broker, members, now),
            renewer=services.get(renewer.NAME),
            loopback=loopback.state(self.layout, record.broker) if isinstance(record.broker, LocalBroker) else "intact",
        )

    def plan(self, desired: DesiredLinks, observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Return the plan of changes. A step is named after its link, or ``broker``, ``forwarder``, ``seals``.

        The plan refuses to start our broker if another program uses one of its ports.
        """
        found = planning.plan(self.layout, desired, observed, remove)
        starts = any(step.name == planning.BROKER and step.action != "remove" for step in found.steps)
        if not starts or not isinstance(desired.broker, LocalBroker):
            return found
        if why := listening.taken(desired.broker, observed.pid):
            refusal = Refusal(planning.KIND, planning.BROKER, f"netspace:{why}")
            return Plan(found.steps, [*found.refusals, refusal], found.notes)
        return found

    def again(self, observed: Observed) -> Plan:
        """Return the plan that makes all links match their record."""
        record = observed.record
        return self.plan(DesiredLinks(record.broker or LocalBroker(), tuple(record.links.values())), observed)

    def apply(self, steps: Sequence[Step], *, purge: bool = False) -> list[Outcome]:
        """Apply the steps of a plan.

        :param purge: whether to delete mail in queues to which no link delivers any more. Without *purge*, such mail
            stays in its queue (it is *parked*). With *purge*, a broker that isn't netspace's own and can't be reached
            is forgotten once all links are revoked; its objects stay on it.
        """
        if not steps:
            return []
        work: LinkChange = steps[0].data
        chosen = {step.name for step in steps}
        chosen |= {old for old, new in renaming.pairs(work.before, work.after)[0].items() if new in chosen}
        after = {
            name: link
            for name in sorted({*work.before, *work.after})
            for link in [(work.after if name in chosen else work.before).get(name)]
            if link is not None
        }
        change = ApplyRun(self.layout, self.supervisor, self.progress)
        broken = ""
        forwarding = ""
        try:
            change.links(work, after, purge)
        except NetspaceError as err:
            broken = str(err)
            change.close_ways(work, after)
        try:
            if not broken and after:
                change.forward(work.broker, after)
        except NetspaceError as err:
            forwarding = str(err)
        outcomes = []
        for step in steps:
            error = broken
            if step.name == FORWARDER:
                error = forwarding or (f"not tried: {broken}" if broken else "")
            outcomes.append(Outcome(step, error))
        if forwarding and FORWARDER not in chosen:
            outcomes[-1] = Outcome(steps[-1], forwarding)
        return outcomes

    def plan_purge(self, owners: Collection[str], going: Collection[str] = ()) -> Plan:
        """Return the plan of a purge: the mail to delete of environments and links that were revoked.

        See ``parked.plan``.
        """
        return parked.plan(self.layout, owners, going)

    def apply_purge(self, steps: Sequence[Step]) -> list[Outcome]:
        """Apply the plan of a purge: delete the mail that stayed in queues after its links were revoked."""
        outcomes = []
        for step in steps:
            error = ""
            try:
                parked.purge(self.layout, self.supervisor, self.progress, step)
            except NetspaceError as err:
                error = str(err)
            outcomes.append(Outcome(step, error))
        return outcomes

    def restore(self) -> dict[str, str]:
        """Restore the forwarder's configuration and the table that guards the broker, after a reboot.

        No service is started: the supervisor starts forwarder and broker, which may wait for the end of the
        restoration.

        :return: the errors, by service.
        """
        record = read(self.layout)
        if record.broker is None or not record.links:
            return {}
        errors: dict[str, str] = {}
        wanted = objects.entered(record.links.values())
        try:
            found = process.find(self.layout, record.broker, wanted, record.links.values())
            complete(wanted, found.namespaces, process.restore(self.layout, found, self.supervisor))
        except NetspaceError as err:
            errors[process.NAME] = str(err)
        try:
            if isinstance(record.broker, LocalBroker):
                loopback.ensure(self.layout, record.broker)
        except NetspaceError as err:
            errors[node.NODE] = str(err)
        return errors

    def empty(self, environment: str) -> None:
        """Delete all messages that wait for one environment, including answers to its requests.

        :raises NetspaceError: the broker can't do that now.
        """
        from netspace.link.mail import emptying

        emptying.empty(self.layout, read(self.layout), environment)

    def sever(self, links: Collection[Link]) -> None:
        """Delete links and the messages in their own queues at the broker at once. The links' records stay.

        :raises NetspaceError: the broker can't do that now.
        """
        from netspace.link import severing

        severing.sever(self.layout, self.recorded_broker(), links)

    def part(self, links: Collection[Link]) -> list[str]:
        """End links to and from other hosts at once; see ``severing.part``. Their record stays.

        :return: why a part of this failed.
        """
        from netspace.link import severing

        return severing.part(self.layout, self.recorded_broker(), links)

    def purge(self) -> None:
        """Remove the renewer, the forwarder, and our own broker with all its mail.

        All link keys and records of this host are deleted, too. Objects on a broker that isn't netspace's own stay; to
        delete them, remove the links first.
        """
        renewer.apply(self.layout, self.supervisor, wanted=False)
        process.remove(self.layout, self.supervisor)
        node.remove(self.layout, self.supervisor, keep_data=False)
        passwords.remove(self.layout, list(passwords.read_all(self.layout)))
        names.forget(self.layout)
        seals.remove(self.layout, list(seals.read_all(self.layout)))
        bundles.keep(self.layout, ())
        endorser.remove(self.layout)
        certificates.remove(self.layout, certificates.known(self.layout))
        forget(self.layout)

    # -- reports -----------------------------------------------------------------
    def list(self) -> dict[str, Any]:
        """Return links and mailboxes with their state (``status.links``)."""
        return status.links(self.layout, self.supervisor)

    def health(self, stopped: Collection[str] = ()) -> dict[str, Any]:
        """Return the health of the links, as ``health.health`` does.

        :param stopped: environments that are stopped on purpose, so that nothing reads their mailboxes.
        """
        return health.health(self.layout, self.supervisor, stopped)

    def management(self, broker: Broker) -> Management:
        """Return a client of *broker*'s management API."""
        return reach.management(self.layout, broker)
