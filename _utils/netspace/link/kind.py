"""The links of one host: observe, plan, apply (see ``netspace.plan``).

What was declared is recorded in ``<records>/link/applied.json`` before the broker is
touched, and what was revoked is taken out of it afterwards: so a run that was killed
anywhere is finished by the next one. The broker's definitions are read once per run,
compared as a whole, and changed by revoking first and importing the difference at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.link import broker as node
from netspace.link import credentials, diff, forwarder, model
from netspace.link.diff import Difference
from netspace.link.management import Login, Management, RefusedError, TooLargeError, UnreachableError
from netspace.link.model import Key
from netspace.plan import Outcome, Plan, Refusal, Step
from netspace.spec.types import Broker, ClusterBroker, Link, LocalBroker
from netspace.supervision import Status, Supervisor

KIND = "link"
BROKER, FORWARDER = "broker", "forwarder"
IMPORT_SECONDS = 300.0

Names = list[str]
BrokerState = Literal["absent", "stopped", "starting", "running", "unreachable"]


def _silent(_: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class DesiredLinks:
    """Links that shall exist, on which broker. Other recorded links stay."""

    broker: Broker
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Record:
    """What was applied last.

    :param broker: None where nothing ever was.
    :param parked: mailboxes (by environment) that were left with mail in them.
    """

    broker: Broker | None = None
    links: Mapping[str, Link] = field(default_factory=dict)
    parked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """What is there.

    :param broker: ``unreachable`` (with ``detail``) is somebody else's broker giving no
        answer; our own is then ``starting``.
    :param definitions: the broker's, or None where it doesn't run, or where they aren't read before
        what is ``flooded`` (``model.flooded``) has been made anew.
    :param installed: our node's files are those of the recorded broker.
    :param config: the forwarder's configuration; ``namespaces`` its environments' inodes.
    """

    record: Record = Record()
    broker: BrokerState = "absent"
    detail: str = ""
    definitions: Mapping[str, Any] | None = field(default=None, repr=False)
    flooded: tuple[Key, ...] = ()
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    installed: bool = True
    forwarder: Status | None = None
    config: str = ""
    namespaces: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """What ``apply`` needs to know; every step of a plan carries the same one."""

    broker: Broker
    before: Mapping[str, Link]
    after: Mapping[str, Link]
    observed: Observed = field(repr=False)


class Links:
    """The links of one instance.

    :param supervisor: runs the broker (where it is ours) and the forwarder.
    :param progress: told what is being waited for.
    """

    def __init__(self, layout: Layout, supervisor: Supervisor, progress: Callable[[str], None] = _silent) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.progress = progress

    # -- what is recorded: asks nobody ---------------------------------------
    def names(self) -> set[str]:
        """The links that were applied, ``<from>.<to>``."""
        return set(self._record().links)

    def recorded(self) -> list[Link]:
        """The links that were applied."""
        return list(self._record().links.values())

    def recorded_broker(self) -> Broker:
        """The broker that was applied, or our own by default."""
        return self._record().broker or LocalBroker()

    @property
    def vhost(self) -> str:
        """The virtual host that the links are in."""
        return _vhost(self.layout, self.recorded_broker())

    def password(self, environment: str) -> str | None:
        """The password of an environment's account; None where it has none (yet)."""
        return credentials.read(self.layout, environment)

    # -- observe, plan, apply --------------------------------------------------
    def observe(self) -> Observed:
        """Read the records, our services and, where the broker runs, its definitions.

        Where nothing was ever applied nothing is asked.
        """
        record = self._record()
        if record.broker is None or not record.links:
            return Observed(record)
        services = self.supervisor.observe()
        state, detail, definitions, flooded = self._ask(record, services)
        config = forwarder.current(self.layout)
        return Observed(
            record=record,
            broker=state,
            detail=detail,
            definitions=definitions,
            flooded=flooded,
            passwords=credentials.read_all(self.layout),
            installed=not isinstance(record.broker, LocalBroker) or node.installed(self.layout, record.broker),
            forwarder=services.get(forwarder.NAME),
            config=config,
            namespaces=forwarder.namespaces(self.layout, model.members(record.links.values())),
        )

    def plan(self, desired: DesiredLinks, observed: Observed, remove: Collection[str] = ()) -> Plan:
        """What must change. Pure. Steps bear the name of a link, or ``broker``, ``forwarder``."""
        before = observed.record.links
        after = {name: link for name, link in before.items() if name not in remove}
        after.update({link.name: link for link in desired.links})
        if not before and not after:
            return Plan(notes=_parked_notes(observed.record.parked))
        notes = _parked_notes(observed.record.parked)
        # With nothing desired the broker is whichever there is.
        wanted = desired.broker if desired.links or observed.record.broker is None else observed.record.broker
        if observed.broker == "unreachable" and (
            not after or _place(wanted) != _place(observed.record.broker or wanted)
        ):
            stay = "its links can't be revoked there and stay usable by whoever reaches it"
            notes.append(f"{observed.detail}; {stay if after else stay + ': only a purge goes on without it'}")
        elif observed.broker == "unreachable" and wanted == observed.record.broker:
            return Plan(refusals=[Refusal(KIND, BROKER, f"{observed.detail}; the state of all links is unknown")])
        work = _Work(wanted, before, after, observed)

        steps: list[Step] = []
        change = Difference()
        drifted: dict[str, dict[str, Any]] = {}
        accounts: dict[str, dict[str, Any]] = {}
        if observed.definitions is not None and wanted == observed.record.broker:
            change = _difference(self.layout, wanted, before, after, observed.definitions, observed.passwords)
            drifted, accounts = _drift(change, before, after)
        elif before and observed.broker != "running":
            notes.append("the broker doesn't run: whether its links are as recorded is unknown until it does")

        broker_changes = _broker_changes(work)
        if after:
            unneeded = {"old": "bound to answers beyond what asking needs", "new": "made anew"}
            accounts.update({":".join(key): unneeded for key in observed.flooded})
            entering = sorted(model.members(after.values()) - model.members(before.values()))
            accounts.update({f"environments:{name}": {"old": None, "new": "mailbox, account"} for name in entering})
            leaving = sorted(model.members(before.values()) - model.members(after.values()))
            accounts.update({f"environments:{name}": {"old": "mailbox, account", "new": None} for name in leaving})
        broker_changes.update(accounts)
        if broker_changes:
            action = "create" if not before else "change" if after else "remove"
            steps.append(Step(KIND, BROKER, action, broker_changes, data=work))
        for name in sorted({*before, *after}):
            old, new = _plain(before.get(name)), _plain(after.get(name))
            if old != new:
                action = "create" if old is None else "remove" if new is None else "change"
                steps.append(Step(KIND, name, action, files.differences(old or {}, new or {}), data=work))
            elif name in drifted:
                steps.append(Step(KIND, name, "repair", drifted[name], "differs on the broker", data=work))
        forwards = _forwarder_changes(self.layout, work)
        if forwards:
            action = "create" if not observed.config else "change" if after else "remove"
            steps.append(Step(KIND, FORWARDER, action, forwards, data=work))
        refusals = [
            Refusal(KIND, BROKER, f"{key[0]} {key[1]} isn't as netspace makes it and may hold mail: delete it by hand")
            for key in change.stuck
        ]
        return Plan(steps, refusals, notes)

    def apply(self, steps: Sequence[Step], *, purge: bool = False) -> list[Outcome]:
        """Carry out a plan's steps.

        :param purge: delete mail in mailboxes that no link leads to any more; else it is parked. Where all links
            go, a broker that isn't ours and was found out of reach is given up, with what is on it.
        """
        if not steps:
            return []
        work: _Work = steps[0].data
        chosen = {step.name for step in steps}
        after = {
            name: link
            for name in sorted({*work.before, *work.after})
            for link in [(work.after if name in chosen else work.before).get(name)]
            if link is not None
        }
        broken = ""
        forwarding = ""
        try:
            self._links(work, after, purge)
        except NetspaceError as err:
            broken = str(err)
        try:
            if not broken and after:
                self._forward(work.broker, after)
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

    def restore(self) -> dict[str, str]:
        """After a reboot: rebuild what the forwarder starts from. Per failed service an error.

        Starts neither it nor the broker, for both may wait for the restoration's end: the supervisor does.
        """
        record = self._record()
        if record.broker is None or not record.links:
            return {}
        errors: dict[str, str] = {}
        wanted = model.members(record.links.values())
        found = forwarder.namespaces(self.layout, wanted)
        try:
            forwarder.restore(self.layout, record.broker, found, self.supervisor)
            _complete(wanted, found)
        except NetspaceError as err:
            errors[forwarder.NAME] = str(err)
        return errors

    def purge(self) -> None:
        """Remove broker, mail, forwarder and records of this host, whatever there is.

        A broker that isn't ours keeps what was made there: remove the links first.
        """
        forwarder.remove(self.layout, self.supervisor)
        node.remove(self.layout, self.supervisor, keep_data=False)
        credentials.remove(self.layout, list(credentials.read_all(self.layout)))
        self._forget()

    # -- seeing -----------------------------------------------------------------
    def list(self) -> dict[str, Any]:
        """Links and mailboxes with their state: ``active``, ``missing`` (not on the broker), ``unknown``."""
        record = self._record()
        listed: dict[str, Any] = {"links": {}, "mailboxes": {}, "parked": list(record.parked)}
        if record.broker is None or not record.links:
            return {"broker": {"state": "absent"}, **listed}
        state, detail, definitions, _ = self._ask(record, self.supervisor.observe())
        there: model.Objects = {}
        if definitions is not None:
            there = _found(self.layout, record.broker, model.members(record.links.values()), definitions).objects
            try:
                with self._management(record.broker) as api:
                    queues = api.get("queues", self.vhost, query="columns=name,messages,consumers") or []
            except NetspaceError as err:
                detail, queues = str(err), []
            counts = {queue["name"]: queue for queue in queues}
            for environment in sorted(model.members(record.links.values())):
                queue = counts.get(model.mailbox(environment), {})
                listed["mailboxes"][environment] = {key: queue.get(key) for key in ("messages", "consumers")}
            listed["dead"] = counts.get(model.DEAD, {}).get("messages")
        for name, link in sorted(record.links.items()):
            on_broker = all(key in there for key in model.of_link(link))
            listed["links"][name] = {
                **(_plain(link) or {}),
                "state": "unknown" if definitions is None else "active" if on_broker else "missing",
            }
        kind = "local" if isinstance(record.broker, LocalBroker) else "cluster"
        about = {"kind": kind, "state": state, "vhost": self.vhost}
        return {"broker": {**about, "detail": detail} if detail else about, **listed}

    def health(self) -> dict[str, Any]:
        """What needs attention: ``{ok, problems: [text]}``; resource alarms of the broker included."""
        record = self._record()
        if record.broker is None or not record.links:
            return {"ok": True, "problems": []}
        problems = []
        services = self.supervisor.observe()
        status = services.get(forwarder.NAME)
        if status is None or status.state != "running":
            problems.append("the forwarder doesn't run: environments can't reach the broker")
        state, detail, *_ = self._ask(record, services, definitions=False)
        if state != "running":
            problems.append(f"the broker is {state}{': ' + detail if detail else ''}; links are unknown")
        else:
            with self._management(record.broker) as api:
                for one in api.get("nodes", query="columns=name,running,mem_alarm,disk_free_alarm") or []:
                    for key, text in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
                        if one.get(key):
                            problems.append(f"{one.get('name')} is short of {text}: it accepts no messages")
                dead = api.get("queues", self.vhost, model.DEAD, query="columns=messages") or {}
                if dead.get("messages"):
                    problems.append(f"{dead['messages']} dead messages")
        problems += _parked_notes(record.parked)
        return {"ok": not problems, "problems": problems}

    # -- the broker ---------------------------------------------------------------
    def _ask(
        self, record: Record, services: Mapping[str, Status], *, definitions: bool = True
    ) -> tuple[BrokerState, str, Mapping[str, Any] | None, tuple[Key, ...]]:
        """State of the recorded broker, a detail, and its definitions, or what is flooded, where it runs."""
        broker = record.broker or LocalBroker()
        if isinstance(broker, LocalBroker):
            status = services.get(node.NODE)
            if status is None or status.state in ("stopped", "failed"):
                return "stopped", status.exit if status else "", None, ()
            if node.login(self.layout) is None:
                return "starting", "its management credentials are missing", None, ()
        try:
            with self._management(broker) as api:
                if not definitions:
                    api.get("overview")
                    return "running", "", None, ()
                flooded = self._flooded(api, broker, record.links)
                if flooded:
                    names = ", ".join(key[1] for key in flooded)
                    return "running", f"bindings that asking doesn't need: of {names}; apply again", None, flooded
                return "running", "", api.get("definitions"), ()
        except (UnreachableError, TooLargeError) as err:
            return ("starting" if isinstance(broker, LocalBroker) else "unreachable"), str(err), None, ()
        except RefusedError as err:
            if isinstance(broker, LocalBroker) and err.status in (401, 503):
                return "starting", str(err), None, ()
            return "unreachable", str(err), None, ()
        except NetspaceError as err:  # its credentials can't be read
            if isinstance(broker, LocalBroker):
                raise
            return "unreachable", str(err), None, ()

    def _flooded(self, api: Management, broker: Broker, links: Mapping[str, Link]) -> tuple[Key, ...]:
        """What environments have bound to answers beyond all need (``model.flooded``).

        The arguments of bindings, which may be huge, are left out of what is read.
        """
        answering = {link.target for link in links.values() if link.pattern == "request"}
        if not answering:
            return ()
        columns = "columns=source,destination_type,destination,properties_key"
        try:
            found = api.get("bindings", _vhost(self.layout, broker), query=columns) or []
        except (TooLargeError, UnreachableError):
            api.get("overview")
            # It is well but for its bindings: without the exchanges for answers, those of environments are gone.
            return tuple(("exchange", model.reply(environment)) for environment in sorted(answering))
        whole = isinstance(broker, LocalBroker)
        return tuple(model.flooded(found, model.members(links.values()), whole=whole))

    def _management(self, broker: Broker) -> Management:
        if isinstance(broker, LocalBroker):
            return node.management(self.layout, broker)
        return Management(broker.management, _login(broker))

    def _links(self, work: _Work, after: Mapping[str, Link], purge: bool) -> None:
        """Make the broker carry the links *after*, and record it."""
        record = work.observed.record
        former = record.broker
        parked: list[str] = list(record.parked)
        lost = isinstance(former, ClusterBroker) and work.observed.broker == "unreachable"
        moved = former is None or _place(former) != _place(work.broker)
        if after and moved and isinstance(work.broker, ClusterBroker):
            # One that was never reached is neither recorded nor a reason to leave the former.
            with self._management(work.broker) as api:
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
            self._write(Record(work.broker, {**work.before, **after}, tuple(parked)))
        elif purge and isinstance(work.broker, LocalBroker):
            self._leave(work.broker, [])
            credentials.remove(self.layout, model.members(work.before.values()))
            self._forget()
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
            self._write(Record(work.broker, after, tuple(parked)))
        else:
            self._leave(work.broker, parked)
            if parked:
                self._write(Record(work.broker, {}, tuple(parked)))
            else:
                self._forget()

    def _on_broker(
        self,
        broker: Broker,
        work: _Work,
        after: Mapping[str, Link],
        purge: bool,
        definitions: Mapping[str, Any] | None,
    ) -> Names:
        """Revoke, then import; return the mailboxes that stay with mail in them."""
        if definitions is None and isinstance(broker, LocalBroker):
            self.progress("starting the broker")
            node.start(self.layout, broker, self.supervisor, self.progress)
        vhost = _vhost(self.layout, broker)
        with self._management(broker) as api:
            if definitions is None:
                # Nothing that an environment may do to what is read next keeps it from being revoked first.
                for key in diff.undeclared(model.objects(work.before.values()), model.objects(after.values())):
                    _delete(api, vhost, key)
                for key in self._flooded(api, broker, {**work.before, **after}):
                    _delete(api, vhost, key)
                definitions = api.get("definitions")
            passwords = dict(work.observed.passwords) or credentials.read_all(self.layout)
            change = _difference(self.layout, broker, work.before, after, definitions, passwords)
            for key in change.revoke:
                _delete(api, vhost, key)
            if change.create or change.change or change.passwords:
                known = credentials.ensure(self.layout, model.members(after.values()), passwords)
                document = diff.document(model.objects(after.values()), change, vhost, known)
                if isinstance(broker, ClusterBroker) and api.get("vhosts", vhost, query="columns=name") is None:
                    document["vhosts"] = [{"name": vhost}]
                    every = dict.fromkeys(("configure", "write", "read"), ".*")
                    manager = {"user": _login(broker).username, "vhost": vhost, **every}
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

    def _forward(self, broker: Broker, links: Mapping[str, Link]) -> None:
        wanted = model.members(links.values())
        found = forwarder.namespaces(self.layout, wanted)
        forwarder.apply(self.layout, broker, found, self.supervisor)
        _complete(wanted, found)

    # -- the record -------------------------------------------------------------
    @property
    def _path(self) -> Any:
        return self.layout.records("link") / "applied.json"

    def _record(self) -> Record:
        from netspace.errors import SpecError
        from netspace.spec import parse

        value = files.read_json(self._path)
        if value is None:
            return Record()
        try:
            links = parse.convert(value["links"], tuple[Link, ...], "links")
            broker = parse.convert(value["broker"], Broker, "broker")
            return Record(broker, {link.name: link for link in links}, tuple(value.get("parked", ())))
        except (KeyError, TypeError, SpecError) as err:
            raise StateError(f"{self._path}: {err}; remove the file and apply again to rebuild it") from err

    def _write(self, record: Record) -> None:
        from netspace.spec import parse

        value = {
            "version": 1,
            "broker": parse.encode(record.broker),
            "links": [_plain(link) for _, link in sorted(record.links.items())],
            "parked": list(record.parked),
        }
        files.write_json(self._path, value)

    def _forget(self) -> None:
        files.remove(self._path)
        try:
            self._path.parent.rmdir()
        except OSError:  # the management account's record is in it
            return


def _complete(wanted: Collection[str], found: Collection[str]) -> None:
    """Raise where one of the environments has no network namespace."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise NetspaceError(
            f"no network namespace of {', '.join(missing)}: they can't reach the broker until "
            "their interface is there; apply the interfaces, then the links again"
        )


def _vhost(layout: Layout, broker: Broker) -> str:
    return layout.instance if isinstance(broker, LocalBroker) else broker.vhost


def _place(broker: Broker) -> tuple[str, ...]:
    """What makes two brokers the same one, whatever else is changed."""
    return ("local",) if isinstance(broker, LocalBroker) else ("cluster", broker.management, broker.vhost)


def _plain(link: Link | None) -> dict[str, str] | None:
    return None if link is None else {"from": link.source, "to": link.target, "pattern": link.pattern}


def _found(layout: Layout, broker: Broker, known: Collection[str], definitions: Mapping[str, Any]) -> model.Found:
    return model.found(definitions, _vhost(layout, broker), known, whole=isinstance(broker, LocalBroker))


def _difference(
    layout: Layout,
    broker: Broker,
    before: Mapping[str, Link],
    after: Mapping[str, Link],
    definitions: Mapping[str, Any],
    passwords: Mapping[str, str],
) -> Difference:
    known = model.members([*before.values(), *after.values()])
    there = _found(layout, broker, known, definitions)
    return diff.difference(model.objects(after.values()), there, passwords)


def _drift(
    change: Difference, before: Mapping[str, Link], after: Mapping[str, Link]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What differs on the broker though the declaration is the same: per link, and the rest."""
    links: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    expected = _expected(before, after)
    for key in sorted(change.touched - expected):
        parts = model.environments_of(key[1], "link") if key[0] in ("exchange", "binding") else None
        entry = {"old": "there" if key in change.revoke else "differs", "new": None}
        if key in change.create:
            entry = {"old": "differs" if key in change.revoke else None, "new": "as declared"}
        elif key not in change.revoke:
            entry = {"old": "differs", "new": "as declared"}
        name = ".".join(parts) if parts else ""
        if name in after:
            links.setdefault(name, {})[":".join(part for part in (key[0], *key[3:4]) if part)] = entry
        else:
            others[":".join(part for part in key if part)] = entry
    return links, others


def _expected(before: Mapping[str, Link], after: Mapping[str, Link]) -> set[Key]:
    """The objects that differ because the declaration does."""
    old, new = model.objects(before.values()), model.objects(after.values())
    keys = {key for key in {*old, *new} if old.get(key) != new.get(key)}
    for name, link in before.items():
        if after.get(name) != link:
            # An asker's bindings to answers that it may no longer hear have keys of its own making.
            keys.update(model.of_link(link))
    return keys


def _broker_changes(work: _Work) -> dict[str, dict[str, Any]]:
    """What must happen to the broker itself."""
    from netspace.spec import parse

    observed = work.observed
    former = observed.record.broker if work.before else None
    old = parse.encode(former) if former is not None else {}
    if not work.after:
        return {"broker": {"old": old.get("kind"), "new": None}}
    changes: dict[str, dict[str, Any]] = files.differences(old, parse.encode(work.broker), "broker:")
    if changes or not isinstance(work.broker, LocalBroker):
        return changes
    if not observed.installed:
        changes["configuration"] = {"old": "differs", "new": "as declared"}
    if observed.broker != "running":
        changes["state"] = {"old": observed.broker, "new": "running"}
    return changes


def _forwarder_changes(layout: Layout, work: _Work) -> dict[str, dict[str, Any]]:
    observed = work.observed
    serves = forwarder.served(observed.config)
    wanted = sorted(model.members(work.after.values()))
    changes: dict[str, dict[str, Any]] = {}
    if serves != wanted:
        added, removed = sorted(set(wanted) - set(serves)), sorted(set(serves) - set(wanted))
        changes["environments"] = {"old": removed or None, "new": added or None}
    elif work.after and observed.config != forwarder.render(layout, work.broker, observed.namespaces):
        changes["configuration"] = {"old": "differs", "new": "as declared"}
    running = observed.forwarder is not None and observed.forwarder.state == "running"
    if work.after and not running:
        changes["state"] = {"old": observed.forwarder.state if observed.forwarder else "absent", "new": "running"}
    return changes


def _parked_notes(parked: Sequence[str]) -> list[str]:
    if not parked:
        return []
    return [f"mail is parked, because no link leads there any more, in the mailboxes of: {', '.join(parked)}"]


def _login(broker: ClusterBroker) -> Login:
    try:
        with open(broker.credentials) as stream:
            username, colon, password = stream.read(4096).strip().partition(":")
    except OSError as err:
        raise NetspaceError(f"broker:credentials: {err}") from err
    if not colon or not username:
        raise NetspaceError(f"broker:credentials: {broker.credentials}: expected user:password")
    return Login(username, password)


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
