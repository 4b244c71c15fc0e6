"""Execution of a plan on the broker: first delete revoked objects, then import all desired objects at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import plan, record
from netspace.link.broker import access, first_start, loopback, node, plugin
from netspace.link.broker.changes import BrokerChanges
from netspace.link.forwarder import ports, process
from netspace.link.pki import authority, certificates, renewer
from netspace.link.pki import passwords as credentials
from netspace.link.plan import LinkChange
from netspace.link.record import Record
from netspace.link.seal import bundle, endorser, peers
from netspace.link.seal import keys as seals
from netspace.link.topology import diff, draining, names, objects, renaming
from netspace.link.topology.draining import DrainingQueue
from netspace.link.topology.names import Names
from netspace.spec import peer
from netspace.spec.types import Broker, ClusterBroker, Link, LocalBroker
from netspace.supervision.service import Supervisor


@dataclass(frozen=True)
class _Left:
    """Queues that stay although no declared link delivers to them, because they hold messages.

    :param parked: the environments whose queue keeps its messages and has no reader.
    :param former: draining queues: their environment reads them until they are empty
        (:mod:`netspace.link.topology.draining`).
    :param passed: exchanges of renamed senders (``draining.passed``).
    """

    parked: tuple[str, ...] = ()
    former: tuple[DrainingQueue, ...] = ()
    passed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Naming:
    """The names of the broker's objects before and after a change.

    :param used: the recorded names.
    :param called: the names after the change.
    :param failed: the error that prevented new names, or None. After such an error, objects keep their recorded names,
        and no object is created.
    """

    used: Names
    called: Names
    failed: NetspaceError | None = None


class ApplyRun:
    """The changes that one run makes to the links of one instance."""

    def __init__(self, layout: Layout, supervisor: Supervisor, progress: Callable[[str], None]) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.progress = progress
        self._recorded: Record | None = None

    def links(self, work: LinkChange, after: Mapping[str, Link], purge: bool) -> None:
        """Change the broker so that it has exactly the links in *after*, and record them.

        :param work: the data of the planned step.
        :param purge: whether to delete mail to which no link delivers any more.
        """
        before = self._recorded = work.observed.record
        where = before.broker
        left = _Left(tuple(before.parked), before.former, before.passed)
        lost = isinstance(where, ClusterBroker) and work.observed.broker == "unreachable"
        moved = where is None or not access.same(where, work.broker)
        if after and moved and isinstance(work.broker, ClusterBroker):
            # Ask the new broker first: if it can't be reached, it isn't recorded, and the old broker stays in use.
            with access.management(self.layout, work.broker) as api:
                if api.get("overview") is None:
                    raise NetspaceError(f"there is no management API at {api.where}; is it RabbitMQ?")
        if where is not None and work.before and moved:
            self.progress("revoking all links on the broker that was declared before")
            try:
                used = names.used(self.layout, where)
                left = self._on_broker(where, work, {}, purge, None, _Naming(used, used))
            except NetspaceError:
                if not lost:  # if it is lost, a note of the plan says so
                    raise
                left = _Left()
            self._leave(where, left.parked)
        definitions = work.observed.definitions if where == work.broker and work.observed.installed else None
        if after:
            if isinstance(work.broker, LocalBroker):
                process.available()
                node.available()
            naming = self._name(
                work, revoking=not moved and any(after.get(name) != link for name, link in work.before.items())
            )
            # Until the broker has been changed, record the old names: only these certainly exist on it.
            named = _named(work, naming.called, after)
            self._record(Record(work.broker, {**work.before, **after}, left.parked, named, left.former, left.passed))
        elif purge and isinstance(work.broker, LocalBroker):
            self._leave(work.broker, ())
            credentials.remove(self.layout, objects.members(work.before.values()))
            seals.remove(self.layout, seals.members(work.before.values()))
            certificates.remove(self.layout, certificates.known(self.layout))
            self._forget()
            return
        else:
            used = names.used(self.layout, work.broker)
            naming = _Naming(used, used)
        try:
            left = self._on_broker(work.broker, work, after, purge, definitions, naming)
        except NetspaceError:
            if after or not (purge and lost):
                raise
            left = _Left()
        # Remove the secrets before the record: without the record no later run would find them.
        members = objects.members(after.values())
        certified = certificates.certified(work.broker, members)
        obsolete = certified & work.observed.passwords.keys()
        credentials.remove(self.layout, (objects.members(work.before.values()) - members) | obsolete)
        certificates.remove(self.layout, certificates.known(self.layout) - certified)
        self._seals(work, after)
        if after:
            named = naming.called.fingerprints(after.values())
            self._record(Record(work.broker, after, left.parked, named, left.former, left.passed))
        else:
            self._leave(work.broker, left.parked)
            if left.parked:
                self._record(Record(work.broker, {}, left.parked, naming.called.fingerprints(())))
            else:
                self._forget()

    def _seals(self, work: LinkChange, after: Mapping[str, Link]) -> None:
        """Create and delete keys for sealed links.

        While this host declares other hosts, their trust bundles and this host's endorser key are kept.

        :param after: the links after the change.
        """
        now, links = time.time(), after.values()
        sealing = seals.members(links)
        renamed = renaming.of(after).environments
        seals.inherit(self.layout, {old: new for old, new in renamed.items() if new in sealing})
        others = work.broker.hosts if isinstance(work.broker, LocalBroker) else ()
        seals.leave(self.layout, seals.members(work.before.values()) - seals.members(links), now)
        bundle.keep(self.layout, others)
        promises: Mapping[str, seals.Promise] = {}
        if peers.hosts(links):
            promises = seals.promises(endorser.ensure(self.layout, authority.read(self.layout), now), links)
        elif not others:
            endorser.remove(self.layout)
        seals.ensure(self.layout, seals.members(links), now, promises)

    def _name(self, work: LinkChange, *, revoking: bool) -> _Naming:
        """Return the names of objects before and after the change.

        If the new names can't be computed and links are to be revoked, return the recorded names with the error, so
        that the links can still be revoked.

        :param revoking: whether links are to be revoked.
        """
        used = names.used(self.layout, work.broker)
        try:
            return _Naming(used, names.ensure(self.layout, work.broker))
        except NetspaceError as err:
            if not revoking:
                raise
            return _Naming(used, used, err)

    def _record(self, what: Record) -> None:
        if what != self._recorded:  # with thousands of links, writing the record is slow
            record.write(self.layout, what)
            self._recorded = what

    def _forget(self) -> None:
        names.forget(self.layout)
        record.forget(self.layout)

    def _on_broker(
        self,
        broker: Broker,
        work: LinkChange,
        after: Mapping[str, Link],
        purge: bool,
        definitions: Mapping[str, Any] | None,
        naming: _Naming,
    ) -> _Left:
        """Delete revoked objects, then import the others; return the queues that stay because they hold mail.

        :param after: the links after the change.
        :param definitions: the broker's definitions, with our account names; None: they are read once the broker is
            started.
        """
        failed, called = naming.failed, naming.called
        try:
            self.issue(broker, objects.members(after.values()))
        except NetspaceError as err:
            failed = failed or err  # raised below, after the revocation
        if after and isinstance(broker, LocalBroker):
            earlier = work.observed.record.broker
            loopback.ensure(self.layout, broker, *([earlier] if isinstance(earlier, LocalBroker) else []))
        if definitions is None and isinstance(broker, LocalBroker):
            self.progress("starting the broker")
            deaf = work.observed.broker == "deaf"
            node.start(self.layout, broker, self.supervisor, self.progress, deaf=deaf)
            if after:  # the former ports are free now
                loopback.ensure(self.layout, broker)
        elif isinstance(broker, LocalBroker):
            first_start.finish(self.layout)
            for name in work.observed.ended:
                node.restart_plugin(self.layout, broker, name)
            if plugin.NAME in work.observed.ended:
                access.await_guard(self.layout, broker)
        vhost = access.vhost(self.layout, broker)
        before = work.observed.record
        accounts = access.accounts(self.layout, broker)
        with access.management(self.layout, broker) as api:
            changes = BrokerChanges(self.layout, broker, api, accounts, self.progress)
            if definitions is None:
                known = naming.used if before.named.get("") else names.PLAIN
                self._revoke_recorded(changes, work.before, after, known)
                definitions = access.definitions(self.layout, api, broker)
            for name in accounts.stale(definitions, vhost):
                api.delete("users", name)
            passwords = dict(work.observed.passwords) or credentials.read_all(self.layout)
            compared = work.compared
            seen = definitions is work.observed.definitions and called == work.observed.names
            if compared is None or not seen or compared.after != after:
                drained = work.observed.drained
                compared = plan.compare(
                    *(self.layout, broker, work.before, after, definitions, passwords, called, drained),
                    before.former,
                )
            change = compared.change
            formers = draining.find(compared.there, compared.wanted, after, before.former, time.time())
            passed = draining.passed(compared.there, compared.wanted, after, before.passed)
            if after:  # record the link of each exchange of a draining queue before the exchange is deleted
                named = _named(work, called, after)
                self._record(Record(broker, {**work.before, **after}, before.parked, named, tuple(formers), passed))
            changes.delete(change.revoke)
            if failed is not None:
                raise failed
            if change.create or change.change or change.passwords:
                everyone = objects.accounts(after.values(), called)
                certified = certificates.certified(broker, everyone)
                secrets = credentials.ensure(self.layout, everyone - certified, passwords)
                secrets |= dict.fromkeys(certified, "")
                changes.put(diff.document(compared.wanted, change, vhost, secrets))
            changes.delete(change.last)
            late = {key[3] for key in change.last if key[0] == "binding"}
            formers = [structs.replace(one, since=time.time()) if one.queue in late else one for one in formers]
            if any(key[0] == "shovel" for key in (*change.revoke, *change.create, *change.change, *change.last)):
                changes.ensure_carriers(after)
            empty = {one.queue for one in formers if one.queue in work.observed.drained}
            empty = {name for name in empty if not access.has_mail(api, vhost, name)}
            for name in empty:
                api.delete("queues", vhost, name)
            reading = {one.queue for one in formers}
            whole = not after and isinstance(broker, LocalBroker)
            left = [name for name in change.left if name not in reading]
            # The host answers no request of a revoked link, so nobody will read these.
            asked = {
                one.queue(link) for link in work.before.values() if peer.is_link(link) for one in (naming.used, called)
            }
            changes.sweep([name for name in left if name in asked], purge=True)
            left = [name for name in left if name not in asked]
            parked = changes.sweep([name for name in left if whole or not names.is_dead(name)], purge)
            return _Left(tuple(parked), tuple(one for one in formers if one.queue not in empty), passed)

    def _revoke_recorded(
        self,
        changes: BrokerChanges,
        before: Mapping[str, Link],
        after: Mapping[str, Link],
        called: Names,
    ) -> None:
        """Delete revoked objects by the record alone, before the broker's definitions are read.

        So no environment can prevent its revocation by making the definitions too large to read.
        """
        broker = changes.broker
        old, new = (plan.objects(self.layout, broker, links, called) for links in (before, after))
        changes.delete(diff.undeclared(old, new))
        changes.delete(access.flooded(self.layout, changes.api, broker, {**before, **after}))

    def _leave(self, broker: Broker, parked: Sequence[str]) -> None:
        """Remove the renewer, the forwarder and our own broker.

        :param parked: the owners of mail that no link delivers to any more. If there are any, the broker's data stay.
        """
        renewer.apply(self.layout, self.supervisor, wanted=False)
        process.remove(self.layout, self.supervisor)
        if isinstance(broker, LocalBroker):
            node.remove(self.layout, self.supervisor, keep_data=bool(parked))

    def forward(self, broker: Broker, links: Mapping[str, Link]) -> None:
        wanted = objects.entered(links.values())
        found, refused = self._serve(broker, wanted, links)
        renewer.apply(self.layout, self.supervisor, wanted=isinstance(broker, LocalBroker))
        complete(wanted, found, refused)

    def _serve(
        self, broker: Broker, wanted: Collection[str], leading: Mapping[str, Link]
    ) -> tuple[Collection[str], dict[str, str]]:
        """Configure the forwarder for the environments in *wanted*, with routes for the links in *leading*.

        :param leading: the links for which the forwarder gets routes to other hosts.
        :return: the environments with a network namespace, and for each environment that is left out the reason.
        """
        found = process.find(self.layout, broker, wanted, leading.values())
        return found.namespaces, process.apply(self.layout, found, self.supervisor)

    def close_ways(self, work: LinkChange, after: Mapping[str, Link]) -> None:
        """Remove the forwarder's routes of revoked links to other hosts, after a change of the broker has failed.

        This needs no broker. Errors are ignored: the run has failed already, and the next run repeats everything.

        :param after: the links after the change.
        """
        where = work.observed.record.broker
        if where is None or not any(objects.elsewhere(link) for name, link in work.before.items() if name not in after):
            return
        staying = {name: link for name, link in work.before.items() if name in after}
        with contextlib.suppress(NetspaceError):
            # The set of environments stays; only their routes to other hosts change.
            self._serve(where, objects.entered(work.before.values()), staying)

    def issue(self, broker: Broker, environments: Collection[str], **how: bool) -> set[str]:
        """Issue missing and due certificates; return the environments with a new certificate.

        See ``certificates.ensure``.
        """
        if not isinstance(broker, LocalBroker):
            return set()
        renewed, told = certificates.ensure(self.layout, broker, environments, time.time(), node.reader(), **how)
        if told:
            self._tell_trust(broker)
        return renewed

    def _tell_trust(self, broker: LocalBroker) -> None:
        """Let the running broker and forwarder load the new trusted certificates."""
        services = self.supervisor.observe([node.NODE, process.NAME])
        running = {name for name, status in services.items() if status.state == "running"}
        if node.NODE in running:
            node.reread_certificates(self.layout, broker)
        if process.NAME in running:
            # The record still has links that are being revoked; their environments may no longer exist.
            links = record.read(self.layout).links
            self._serve(broker, objects.entered(links.values()), links)


def _named(work: LinkChange, called: Names, after: Mapping[str, Link]) -> Mapping[str, str]:
    """Return the fingerprints of the names to record until the broker has been changed.

    They are those of the recorded names, since only these certainly exist on the broker. Without earlier links, they
    are those of the new names.
    """
    return work.observed.record.named if work.before else called.fingerprints(after.values())


def complete(wanted: Collection[str], found: Collection[str], refused: Mapping[str, str]) -> None:
    """Raise an error if the forwarder leaves out environments. It serves all other environments.

    :param wanted: the environments to serve.
    :param found: the environments with a network namespace.
    :param refused: for each environment whose port can't be used, the reason.
    :raises NetspaceError: an environment of *wanted* is left out.
    """
    missing = sorted(set(wanted) - set(found))
    why = []
    if missing:
        why.append(
            f"no network namespace of {', '.join(missing)}: they can't reach the broker until "
            "their interface is there; apply the interfaces, then the links again"
        )
    if refused:
        why.append(ports.told(refused))
    if why:
        raise NetspaceError("; ".join(why))
