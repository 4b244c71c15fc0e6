"""Plan of the changes that bring links into the desired state. Pure: neither the broker nor the disk is accessed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace import files
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link.broker import access, loopback
from netspace.link.broker.access import BrokerState
from netspace.link.forwarder import process as forwarder
from netspace.link.pki import certificates, renewer
from netspace.link.pki.certificates import Identities
from netspace.link.record import Record, plain
from netspace.link.seal import endorser
from netspace.link.seal import keys as seals
from netspace.link.seal.peers import PeerKeys
from netspace.link.topology import diff, draining, found_objects, mailboxes, peers, renaming
from netspace.link.topology import objects as model
from netspace.link.topology.diff import Difference
from netspace.link.topology.draining import DrainingQueue
from netspace.link.topology.found_objects import Found
from netspace.link.topology.names import Names, account, environments_of, shown
from netspace.link.topology.objects import Key
from netspace.plan import Plan, Refusal, Step
from netspace.spec.types import Broker, Link, LocalBroker
from netspace.supervision.service import Status

KIND = "link"
BROKER, FORWARDER, SEALS = "broker", "forwarder", "seals"


@dataclass(frozen=True)
class DesiredLinks:
    """The links to create or change, and their broker. Other recorded links stay as they are."""

    broker: Broker
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Observed:
    """The links of this host, their broker and its services, as observed.

    :param record: the broker and the links that were applied last.
    :param broker: the broker's state. ``unreachable`` (with ``detail``): a broker that isn't netspace's own doesn't
        answer, or a broker refuses the request. Our own broker is ``starting`` while it doesn't answer.
    :param definitions: the broker's definitions with netspace's names of accounts; None: it doesn't run, or some
        objects are *flooded*.
    :param flooded: objects with excess bindings, which must be recreated first (``found_objects.flooded``).
    :param ended: plugins that have ended in a running broker (``access.ended``).
    :param names: the desired names of objects; None: the key from which names derive is still to be made.
    :param unnamed: why the desired names can't be computed (*names* then has the recorded names); empty if they are
        computed.
    :param drained: draining queues that are empty.
    :param emptied: recorded owners of parked mail whose mail is gone.
    :param now: the time of the observation, in seconds since 1970.
    :param passwords: the passwords of environments' accounts.
    :param installed: whether our node's files match the recorded broker.
    :param forwarder: the status of the forwarder's service.
    :param silent: why the forwarder forwards nothing, though its process runs; empty if it forwards.
    :param config: the forwarder's configuration.
    :param namespaces: the inode numbers of the environments' network namespaces.
    :param keys: the keys for sealed links, by environment.
    :param others: the keys and names of other hosts, for sealed links to and from them.
    :param identities: the authority and the certificates it issued.
    :param renewer: the status of the renewer's service.
    :param pid: the process id of our own node; 0: it doesn't run.
    :param loopback: the state of the table that keeps local users from our own node's ports.
    """

    record: Record = field(default_factory=Record)
    broker: BrokerState = "absent"
    detail: str = ""
    definitions: Mapping[str, Any] | None = field(default=None, repr=False)
    flooded: tuple[Key, ...] = ()
    ended: tuple[str, ...] = ()
    names: Names | None = None
    unnamed: str = ""
    drained: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    now: float = 0.0
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    installed: bool = True
    forwarder: Status | None = None
    silent: str = ""
    config: str = ""
    namespaces: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, seals.Keys] = field(default_factory=dict, repr=False)
    others: PeerKeys = field(default_factory=PeerKeys)
    identities: Identities = field(default_factory=Identities)
    renewer: Status | None = None
    pid: int = 0
    loopback: loopback.State = "intact"


@dataclass(frozen=True)
class LinkChange:
    """Input of ``apply``; all steps of a plan have the same object in ``data``.

    :param before: the recorded links.
    :param after: the links after the plan.
    :param observed: the observed state.
    :param compared: the comparison of the broker's objects with the desired ones; None: the definitions weren't
        available.
    """

    broker: Broker
    before: Mapping[str, Link]
    after: Mapping[str, Link]
    observed: Observed = field(repr=False)
    compared: Comparison | None = field(default=None, repr=False)


def plan(layout: Layout, desired: DesiredLinks, observed: Observed, remove: Collection[str] = ()) -> Plan:
    """Return the plan of changes. Each step is named after its link, or ``broker``, ``forwarder`` or ``seals``."""
    before = observed.record.links
    after = {name: link for name, link in before.items() if name not in remove}
    after.update({link.name: link for link in desired.links})
    notes = parked_notes(observed.record.parked, observed.emptied)
    if not before and not after:
        return Plan(notes=notes)
    # If no link is desired, the broker stays the recorded one.
    wanted = desired.broker if desired.links or observed.record.broker is None else observed.record.broker
    if observed.broker == "unreachable" and (not after or not access.same(wanted, observed.record.broker or wanted)):
        stay = "its links can't be revoked there, so clients that reach it can still use them"
        notes.append(f"{observed.detail}; {stay if after else stay + ': only a purge goes on without it'}")
    elif observed.broker == "unreachable" and wanted == observed.record.broker:
        if before == after:
            return Plan(refusals=[Refusal(KIND, BROKER, f"{observed.detail}; the state of all links is unknown")])
        notes.append(f"{observed.detail}: this plan relies on the last record; apply it once the broker answers")
    steps: list[Step] = []
    change = Difference()
    comparison: Comparison | None = None
    drifted: dict[str, dict[str, Any]] = {}
    accounts: dict[str, dict[str, Any]] = {}
    renamed = _renamed(observed, after)
    if before and after and renamed and wanted == observed.record.broker:
        accounts.update(renamed)
    elif observed.definitions is not None and observed.names is not None and wanted == observed.record.broker:
        comparison = compare(
            layout,
            wanted,
            before,
            after,
            observed.definitions,
            observed.passwords,
            observed.names,
            observed.drained,
            observed.record.former,
        )
        change = comparison.change
        drifted, accounts = _drift(comparison, before, observed)
        named = certificates.accounts(wanted, observed.identities.host)
        stale = named.stale(observed.definitions, access.vhost(layout, wanted))
        accounts.update({f"user:{name}": {"old": "logs in another way than declared", "new": None} for name in stale})
        if after:
            accounts.update(mailboxes.former_changes(comparison.formers(observed), observed.record.former))
    work = LinkChange(wanted, before, after, observed, comparison)
    if observed.broker == "deaf":
        notes.append(
            f"no client reaches the broker: {observed.detail}; the apply asks it again, and restarts it if it is silent"
        )
    elif before and observed.broker not in ("running", "unreachable"):
        notes.append("the broker doesn't run: whether its links are as recorded is unknown until it does")

    broker_changes = _broker_changes(work)
    if after:
        accounts.update({f"parked:{owner}": {"old": "mail", "new": None} for owner in observed.emptied})
        unneeded = {"old": "excess bindings to answers", "new": "created again"}
        accounts.update({shown(":".join(key)): unneeded for key in observed.flooded})
        left = set(observed.record.parked).difference(observed.emptied)
        unread = draining.unread(left, observed.record.former, observed.drained)
        accounts.update(mailboxes.members_changes(before, after, unread))
    broker_changes.update(accounts)
    if broker_changes:
        action = "create" if not before else "change" if after else "remove"
        steps.append(Step(KIND, BROKER, action, broker_changes, data=work))
    former = {new: old for old, new in renaming.pairs(before, after)[0].items()}
    for name in sorted({*before, *after} - set(former.values())):
        old, new = plain(before.get(former.get(name, name))), plain(after.get(name))
        if old != new:
            action = "create" if old is None else "remove" if new is None else "change"
            action = "rename" if name in former else action
            steps.append(Step(KIND, name, action, files.differences(old or {}, new or {}), data=work))
        elif name in drifted:
            steps.append(Step(KIND, name, "repair", drifted[name], "differs on the broker", data=work))
    notes += observed.others.lacking(after.values(), observed.now)
    keys = _key_changes(work)
    if keys:
        steps.append(Step(KIND, SEALS, "change", keys, data=work))
    forwards = _forwarder_changes(layout, work)
    if forwards:
        action = "create" if not observed.config else "change" if after else "remove"
        steps.append(Step(KIND, FORWARDER, action, forwards, data=work))
    refusals = [
        Refusal(
            KIND, BROKER, f"{key[0]} {shown(key[1])} isn't as netspace makes it and may hold mail: delete it by hand"
        )
        for key in change.stuck
    ]
    if observed.unnamed and after and wanted == observed.record.broker:
        why = f"{observed.unnamed}: until this is repaired, links are only revoked"
        if steps:
            notes.append(why)
        else:
            refusals.append(Refusal(KIND, BROKER, why))
    return Plan(steps, refusals, notes)


def _renamed(observed: Observed, after: Mapping[str, Link]) -> dict[str, dict[str, Any]]:
    """Return the groups of objects to rename because their name key changed, as changes of a step.

    ``names`` is the group of objects of this host alone, ``names:<host>`` the group that it shares with another host.
    """
    record = observed.record
    own = record.named.get("", "")
    old = {"old": "another key's" if own else "guessable", "new": "unguessable"}
    if observed.names is None:
        return {"names": old}
    staying = [link for name, link in record.links.items() if name in after]
    now = observed.names.fingerprints(staying).items()
    return {f"names:{host}" if host else "names": old for host, one in now if record.named.get(host, own) != one}


def objects(layout: Layout, broker: Broker, links: Mapping[str, Link], names: Names) -> model.Objects:
    """Return all objects that these links need on *broker*."""
    outboxes = {names.outbox(link): link for link in links.values() if model.carried(link)}
    return model.objects(links.values(), names, _shovels(layout, broker, outboxes, names))


def _shovels(layout: Layout, broker: Broker, outboxes: Mapping[str, Link], names: Names) -> dict[str, dict[str, Any]]:
    tls = certificates.server_folder(layout)
    login = (tls / certificates.ANCHORS, tls / certificates.CLIENT)
    return peers.shovels(broker, outboxes, names, access.vhost(layout, broker), *login)


def found(layout: Layout, broker: Broker, known: Collection[str], definitions: Mapping[str, Any]) -> Found:
    return found_objects.found(definitions, access.vhost(layout, broker), known, whole=isinstance(broker, LocalBroker))


@dataclass(frozen=True)
class Comparison:
    """Comparison of the objects on the broker with the desired ones.

    :param there: the observed objects.
    :param wanted: the desired objects.
    :param after: the links after the plan.
    :param change: the changes that lead from *there* to *wanted*.
    """

    there: Found
    wanted: model.Objects
    after: Mapping[str, Link]
    change: Difference

    def formers(self, observed: Observed) -> list[DrainingQueue]:
        """Return the draining queues after the change: each draining queue that still has messages."""
        known = observed.record.former
        found = draining.find(self.there, self.wanted, self.after, known, observed.now)
        return [one for one in found if one.queue not in observed.drained]


def compare(
    layout: Layout,
    broker: Broker,
    before: Mapping[str, Link],
    after: Mapping[str, Link],
    definitions: Mapping[str, Any],
    passwords: Mapping[str, str],
    names: Names,
    drained: Collection[str],
    recorded: Collection[DrainingQueue],
) -> Comparison:
    """Compare the objects on *broker* with the desired ones.

    :param drained: empty draining queues. An outbox among them no longer needs a shovel.
    :param recorded: the recorded draining queues.
    """
    known = model.accounts([*before.values(), *after.values()], names)
    there = found(layout, broker, known, definitions)
    wanted = objects(layout, broker, after, names)
    outboxes = draining.outboxes(there, wanted, after, recorded)
    outboxes = {queue: link for queue, link in outboxes.items() if queue not in drained}
    for queue, value in _shovels(layout, broker, outboxes, names).items():
        wanted["shovel", queue] = {"value": value}
    formers = [one for one in draining.find(there, wanted, after, recorded, 0.0) if one.queue not in drained]
    for environment, queues in draining.read_under_former_names(formers).items():
        wanted["permission", account(environment)] = model.reading(wanted["permission", account(environment)], queues)
    none = dict.fromkeys(certificates.certified(broker, known), "")
    return Comparison(there, wanted, after, diff.difference(wanted, there, {**passwords, **none}))


def _drift(
    comparison: Comparison, before: Mapping[str, Link], observed: Observed
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return objects that differ on the broker although their declaration hasn't changed.

    :return: two mappings: the differing objects of links, by link; and all other differing objects.
    """
    links: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    change, after = comparison.change, comparison.after
    assert observed.names is not None
    expected = _expected(comparison, before, observed.names) | {("shovel", queue) for queue in observed.drained}
    ended = [one for one in observed.record.former if one.queue in observed.drained]
    expected |= {("permission", account(reader)) for reader in draining.read_under_former_names(ended)}
    for key in sorted(change.touched - expected):
        parts = environments_of(key[1], "link", "outbox") if key[0] in ("exchange", "binding", "shovel") else None
        entry = {"old": "there" if key in change.revoke or key in change.last else "differs", "new": None}
        if key in change.create:
            entry = {"old": "differs" if key in change.revoke else None, "new": "as declared"}
        elif entry["old"] == "differs":
            entry = {"old": "differs", "new": "as declared"}
        name = ".".join(parts) if parts else ""
        if name in after:
            links.setdefault(name, {})[":".join(part for part in (key[0], *key[3:4]) if part)] = entry
        else:
            others[shown(":".join(part for part in key if part))] = entry
    return links, others


def _expected(comparison: Comparison, before: Mapping[str, Link], names: Names) -> set[Key]:
    """Return the objects that differ because the declaration has changed."""
    if before == comparison.after:
        return set()
    old, new = model.objects(before.values(), names), comparison.wanted
    keys = {key for key in {*old, *new} if old.get(key) != new.get(key)}
    for name, link in before.items():
        if comparison.after.get(name) != link:
            # Bindings of a revoked asker to answers have random routing keys, so only their exchange identifies them.
            keys.update(model.of_link(link, names))
    return keys


def _broker_changes(work: LinkChange) -> dict[str, dict[str, Any]]:
    """Return the changes of the broker as a whole: declaration, certificates, renewer, configuration and state."""
    from netspace.spec import parse

    observed = work.observed
    former = observed.record.broker if work.before else None
    old = parse.encode(former) if former is not None else {}
    if not work.after:
        return {"broker": {"old": old.get("kind"), "new": None}}
    changes: dict[str, dict[str, Any]] = files.differences(old, parse.encode(work.broker), "broker:")
    if former is None:
        changes = {key: change for key, change in changes.items() if change["new"] not in (None, (), [], {}, "")}
    if changes or not isinstance(work.broker, LocalBroker):
        return changes
    if work.before:
        staying = model.members(work.before.values()) & model.members(work.after.values())
        changes.update(observed.identities.changes(work.broker, staying))
        changes.update(renewer.lacking(observed.renewer, wanted=True))
    if not observed.installed:
        changes["configuration"] = {"old": "differs", "new": "as declared; the broker is restarted"}
    if observed.broker != "running":
        changes["state"] = {"old": observed.broker, "new": "running"}
    if observed.loopback == "changed":
        changes["ports"] = {"old": "open to local users", "new": "root's, the broker's and the forwarder's"}
    for name in observed.ended:
        changes["carriers to other hosts" if name == access.SHOVELS else "guard"] = {"old": "ended", "new": "running"}
    return changes


def _key_changes(work: LinkChange) -> dict[str, dict[str, Any]]:
    """Return changes of keys: by environment, keys for sealed links to make, endorse, renew or delete.

    Changes of the host's endorser are included.
    """
    observed, own = work.observed, work.observed.others.own
    wanted = seals.members(work.after.values())
    promises = seals.promises(own, work.after.values())
    changes: dict[str, dict[str, Any]] = {}
    if promises and (lacking := endorser.lacking(own, observed.others.known)):
        changes["endorser of this host"] = {"old": lacking if own else None, "new": "certified"}
    former = {new: old for old, new in renaming.pairs(work.before, work.after)[1].items()}
    for name in sorted(wanted | seals.members(work.before.values())):
        keys = observed.keys.get(name, ())
        if (was := former.get(name)) in observed.keys and name in wanted:
            changes[name] = {"old": f"keys of {was}", "new": "keys"}
        elif name in former.values() and any(was == name and new in wanted for new, was in former.items()):
            continue
        elif name not in wanted:
            stay = seals.awaited(keys, observed.now)
            changes[name] = {"old": "keys", "new": "kept for messages that other hosts have sealed" if stay else None}
        elif reason := seals.due(keys, observed.now, promises.get(name)):
            changes[name] = {"old": reason if keys else None, "new": "keys"}
    return changes


def _forwarder_changes(layout: Layout, work: LinkChange) -> dict[str, dict[str, Any]]:
    observed = work.observed
    links = work.after.values()
    serves = forwarder.served(observed.config)
    wanted = sorted(model.entered(links))
    ways = peers.ways(work.broker, links)
    peer = host_peer.wanted(links)
    as_declared = forwarder.Wanted(work.broker, observed.namespaces, observed.identities.trusted, ways, peer)
    changes: dict[str, dict[str, Any]] = {}
    if serves != wanted:
        added, removed = sorted(set(wanted) - set(serves)), sorted(set(serves) - set(wanted))
        changes["environments"] = {"old": removed or None, "new": added or None}
    elif work.after and observed.config != forwarder.render(layout, as_declared):
        changes["configuration"] = {"old": "differs", "new": "as declared"}
    running = observed.forwarder is not None and observed.forwarder.state == "running"
    if work.after and not running:
        changes["state"] = {"old": observed.forwarder.state if observed.forwarder else "absent", "new": "running"}
    elif work.after and observed.silent:
        changes["state"] = {"old": f"silent: {observed.silent}", "new": "running"}
    return changes


def parked_notes(parked: Sequence[str], emptied: Collection[str] = ()) -> list[str]:
    """Return notes that name the owners of *parked* mail, without those whose mail is gone."""
    left = [owner for owner in parked if owner not in emptied]
    if not left:
        return []
    return [f"mail is parked, because no link leads there any more, in the mailboxes of: {', '.join(left)}"]
