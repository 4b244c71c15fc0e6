"""Carrying a plan out on the broker: what is revoked goes first, then one import of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import broker as node
from netspace.link import credentials, diff, forwarder, model, planning, reach, record
from netspace.link.management import Management, RefusedError
from netspace.link.model import Key
from netspace.link.planning import Work
from netspace.link.record import Record
from netspace.spec.types import Broker, ClusterBroker, Link, LocalBroker
from netspace.supervision import Supervisor

IMPORT_SECONDS = 300.0

Names = list[str]


class Change:
    """One run's changes of one instance."""

    def __init__(self, layout: Layout, supervisor: Supervisor, progress: Callable[[str], None]) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.progress = progress

    def links(self, work: Work, after: Mapping[str, Link], purge: bool) -> None:
        """Make the broker carry the links *after*, and record it."""
        before = work.observed.record
        former = before.broker
        parked: list[str] = list(before.parked)
        lost = isinstance(former, ClusterBroker) and work.observed.broker == "unreachable"
        moved = former is None or reach.place(former) != reach.place(work.broker)
        if after and moved and isinstance(work.broker, ClusterBroker):
            # One that was never reached is neither recorded nor a reason to leave the former.
            with reach.management(self.layout, work.broker) as api:
                if api.get("overview") is None:
                    raise NetspaceError(f"there is no management API at {api.where}; is it RabbitMQ?")
        if former is not None and work.before and moved:
            self.progress("revoking all links on the former broker")
            try:
                parked = self._on_broker(former, work, {}, purge, None)
            except NetspaceError:
                if not lost:  # else the plan's notes say so
                    raise
                parked = []
            self._leave(former, parked)
        definitions = work.observed.definitions if former == work.broker and work.observed.installed else None
        if after:
            if isinstance(work.broker, LocalBroker):
                forwarder.available()
                node.available()
            record.write(self.layout, Record(work.broker, {**work.before, **after}, tuple(parked)))
        elif purge and isinstance(work.broker, LocalBroker):
            self._leave(work.broker, [])
            credentials.remove(self.layout, model.members(work.before.values()))
            record.forget(self.layout)
            return
        try:
            parked = self._on_broker(work.broker, work, after, purge, definitions)
        except NetspaceError:
            if after or not (purge and lost):
                raise
            parked = []
        # Before the record goes: without it nothing would ever find them.
        credentials.remove(self.layout, model.members(work.before.values()) - model.members(after.values()))
        if after:
            record.write(self.layout, Record(work.broker, after, tuple(parked)))
        else:
            self._leave(work.broker, parked)
            if parked:
                record.write(self.layout, Record(work.broker, {}, tuple(parked)))
            else:
                record.forget(self.layout)

    def _on_broker(
        self,
        broker: Broker,
        work: Work,
        after: Mapping[str, Link],
        purge: bool,
        definitions: Mapping[str, Any] | None,
    ) -> Names:
        """Revoke, then import; return the mailboxes that stay with mail in them."""
        if definitions is None and isinstance(broker, LocalBroker):
            self.progress("starting the broker")
            node.start(self.layout, broker, self.supervisor, self.progress)
        vhost = reach.vhost(self.layout, broker)
        with reach.management(self.layout, broker) as api:
            if definitions is None:
                # Nothing that an environment may do to what is read next keeps it from being revoked first.
                for key in diff.undeclared(model.objects(work.before.values()), model.objects(after.values())):
                    _delete(api, vhost, key)
                for key in reach.flooded(self.layout, api, broker, {**work.before, **after}):
                    _delete(api, vhost, key)
                definitions = api.get("definitions")
            passwords = dict(work.observed.passwords) or credentials.read_all(self.layout)
            change = planning.difference(self.layout, broker, work.before, after, definitions, passwords)
            for key in change.revoke:
                _delete(api, vhost, key)
            if change.create or change.change or change.passwords:
                known = credentials.ensure(self.layout, model.members(after.values()), passwords)
                document = diff.document(model.objects(after.values()), change, vhost, known)
                if isinstance(broker, ClusterBroker) and api.get("vhosts", vhost, query="columns=name") is None:
                    document["vhosts"] = [{"name": vhost}]
                    every = dict.fromkeys(("configure", "write", "read"), ".*")
                    manager = {"user": reach.login(broker).username, "vhost": vhost, **every}
                    document["permissions"] = [*document.get("permissions", ()), manager]
                self.progress(f"importing {sum(map(len, document.values()))} objects into the broker")
                api.post("definitions", body=document, timeout=IMPORT_SECONDS)
            return self._sweep(api, vhost, change.left, purge, not after and isinstance(broker, LocalBroker))

    def _sweep(self, api: Management, vhost: str, left: Sequence[str], purge: bool, whole: bool) -> Names:
        """Delete mailboxes that nothing declares, but those with mail in them, unless told to; return these."""
        queues = {model.mailbox(environment): environment for environment in left}
        if whole:
            queues[model.DEAD] = model.DEAD
        if not queues:
            return []
        if purge:
            for name in queues:
                api.delete("queues", vhost, name)
            return []
        counted = api.get("queues", vhost, query="columns=name,messages") or []
        full = {queue["name"] for queue in counted if queue.get("messages")} & queues.keys()
        # Those counts are up to 5 s old, and mail that a consumer held comes back only when its
        # connection has ended: so ask each queue itself, and once more a little later.
        for _ in range(2):
            full |= {name for name in queues if name not in full and _has_mail(api, vhost, name)}
            time.sleep(0.2)
        for name in queues.keys() - full:
            api.delete("queues", vhost, name)
        return sorted(queues[name] for name in full)

    def _leave(self, broker: Broker, parked: Sequence[str]) -> None:
        """Stop what served the last link."""
        forwarder.remove(self.layout, self.supervisor)
        if isinstance(broker, LocalBroker):
            node.remove(self.layout, self.supervisor, keep_data=bool(parked))

    def forward(self, broker: Broker, links: Mapping[str, Link]) -> None:
        wanted = model.members(links.values())
        found = forwarder.namespaces(self.layout, wanted)
        forwarder.apply(self.layout, broker, found, self.supervisor)
        complete(wanted, found)


def complete(wanted: Collection[str], found: Collection[str]) -> None:
    """Raise where one of the environments has no network namespace."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise NetspaceError(
            f"no network namespace of {', '.join(missing)}: they can't reach the broker until "
            "their interface is there; apply the interfaces, then the links again"
        )


def _delete(api: Management, vhost: str, key: Key) -> None:
    """Delete one object; one that is gone already is as good."""
    match key[0]:
        case "user":
            api.delete("users", key[1])
        case "permission":
            api.delete("permissions", vhost, key[1])
        case "policy":
            api.delete("policies", vhost, key[1])
        case "exchange" | "queue":
            # Its bindings go with it, which may be many.
            api.delete(f"{key[0]}s", vhost, key[1], timeout=IMPORT_SECONDS)
        case _:
            _, source, kind, target, routing_key = key
            where = ("bindings", vhost, "e", source, "q" if kind == "queue" else "e", target)
            for one in api.get(*where, query="columns=routing_key,properties_key") or []:
                if one.get("routing_key") == routing_key:
                    api.delete(*where, one["properties_key"])


def _has_mail(api: Management, vhost: str, queue: str) -> bool:
    """Whether a message can be got (it is put back); also where that can't be found out."""
    body = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
    try:
        got = api.post("queues", vhost, queue, "get", body=body)
    except RefusedError:
        return True
    return bool(got)
