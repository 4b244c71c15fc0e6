"""Health of links: broker, alarms, accounts that were cut off, forwarder, full or unread mailboxes, dead letters.

Nothing is changed. The broker's message counts are up to 5 s old.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import host_peer, peer_status, plan, problems
from netspace.link.broker import access, loopback, node
from netspace.link.broker.management import Management
from netspace.link.forwarder import entrance, haproxy, process
from netspace.link.mail import dead_letters, parked
from netspace.link.pki import authority, certificates, renewer
from netspace.link.problems import Problem
from netspace.link.record import Record, read
from netspace.link.seal import peers
from netspace.link.topology import names, objects, policies
from netspace.spec import peer
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Status, Supervisor

FULL = 0.8
"""The fill ratio from which a queue is reported as nearly full."""

TOLD_SECONDS = 3600.0
"""Seconds for which ``health`` reports that an account was cut off."""


def health(layout: Layout, supervisor: Supervisor, stopped: Collection[str] = ()) -> dict[str, Any]:
    """Return the health of the links, as ``{ok, problems, findings, dead, late}``.

    ``problems`` has one text for each cause. ``findings`` has a row for each problem (``problems.Problem``), even if
    another problem causes it. ``dead`` is the number of dead letters, ``late`` the number of late ones (expired or
    dropped); None if unknown.

    :param stopped: environments that are stopped on purpose, so that nothing reads their mailboxes.
    """
    record = read(layout)
    if record.broker is None or not record.links:
        found = [Problem("mail-parked", text) for text in plan.parked_notes(record.parked)]
        none = None if names.DEAD in record.parked else 0
        return {"ok": not found, **problems.told(found), "dead": none, "late": none}
    dead = late = None
    gone = parked.emptied(layout, record)
    found = [Problem("mail-parked", text) for text in plan.parked_notes(record.parked, gone)]
    services = supervisor.observe([node.NODE, process.NAME, renewer.NAME, host_peer.SERVICE])
    members = objects.members(record.links.values())
    found += _ways(layout, services, objects.entered(record.links.values()))
    if host_peer.wanted(record.links.values()):
        status = services.get(host_peer.SERVICE)
        found += problems.host_peer(None if status is None else status.state)
    found += _keys(layout, record, members)
    if isinstance(record.broker, LocalBroker) and (open_ := loopback.state(layout, record.broker)) != "intact":
        why = "this kernel has no nftables" if open_ == "unsupported" else "their nftables table is missing or changed"
        text = f"any user of the host reaches the broker's ports: {why}; see docs/links.md"
        found.append(Problem("broker-exposed", text))
    if renewer.lacking(services.get(renewer.NAME), isinstance(record.broker, LocalBroker)):
        found.append(Problem("renewer-down", "the renewer of certificates doesn't run; apply again"))
    state, detail, *_ = access.ask(layout, record, services, whole=False)
    found += problems.broker(state, detail)
    if state == "running":
        try:
            with access.management(layout, record.broker) as api:
                found += _alarms(api, isinstance(record.broker, LocalBroker))
                found += _floods(layout, record, api)
                found += _queues(layout, record, api, stopped, {one.key for one in found})
                found += _across(layout, record, api)
                dead, late = dead_letters.Letters(layout).number(api)
        except NetspaceError as err:
            found.append(Problem("broker-silent", f"the broker doesn't report its state: {err}"))
    if dead:  # late ones are no problem: they expired or were dropped as declared or requested
        found.append(Problem("dead-letters", f"{dead} dead letters"))
    return {"ok": not found, **problems.told(found), "dead": dead, "late": late}


def _ways(layout: Layout, services: Mapping[str, Status], members: Collection[str]) -> list[Problem]:
    """Return the problems between environments and the broker: of the forwarder, and of single environments."""
    status = services.get(process.NAME)
    state = None if status is None else status.state
    found = problems.forwarder(state, haproxy.silent(layout) if state == "running" else "")
    for name, why in entrance.left_out(layout, members).items():
        found.append(problems.entrance(name, f"the forwarder leaves out {name}: {why}"))
    for name, why in sorted(entrance.shut(layout, members).items()):
        found.append(problems.entrance(name, f"{name} can't reach the broker: {why}"))
    return found


def _keys(layout: Layout, record: Record, members: Collection[str]) -> list[Problem]:
    """Return the problems of certificates, of the authority, and of keys for sealed links."""
    broker, now = record.broker, time.time()
    assert broker is not None
    found = []
    if lacking := list(certificates.observe(layout, broker, members, now).changes(broker, members)):
        found.append(Problem("certificates-due", f"{', '.join(lacking[:10])}: certificate missing or due; apply again"))
    known = authority.read(layout) if isinstance(broker, LocalBroker) else None
    if known is not None and known.source and now > known.ends - (known.ends - known.begins) / 3:
        until = time.strftime("%Y-%m-%d", time.gmtime(known.ends))
        text = f"the authority of links (broker:authority) expires on {until}, and all links end then; replace it"
        found.append(Problem("authority-ends", text))
    return found + peers.read(layout, broker, record.links.values()).problems(record.links.values(), now)


def _alarms(api: Management, own: bool) -> list[Problem]:
    """Return the problems of the broker's nodes.

    :param own: whether the broker is netspace's own, which has a guard.
    """
    found = []
    for one in api.get("nodes", query="columns=name,running,uptime,mem_alarm,disk_free_alarm,applications") or []:
        name = str(one.get("name"))
        if one.get("running") is False:
            found.append(Problem("node-down", f"{name}, a node of the broker, doesn't run", name))
        if one.get("mem_alarm"):
            found.append(Problem("memory-alarm", f"{name} is short of memory: it accepts no messages", name))
        if one.get("disk_free_alarm"):
            found.append(Problem("disk-alarm", f"{name} is short of disk space: it accepts no messages", name))
        if own and access.guard_ended(one):
            text = "the broker's guard has ended: nothing bounds an environment's data in the broker; apply again"
            found.append(Problem("guard-down", text))
    return found


def _floods(layout: Layout, record: Record, api: Management) -> list[Problem]:
    """Return two kinds of problems: accounts that were cut off in the last hour, and excess bindings."""
    if record.broker is None:
        return []
    found = []
    if isinstance(record.broker, LocalBroker):
        for whose, about in sorted(access.cut_off(layout, record.broker, api).items()):
            if time.time() - about["at"] < TOLD_SECONDS:
                when = time.strftime("%H:%M:%S UTC", time.gmtime(about["at"]))
                text = f"{whose} was cut off {about['times']} times, last at {when}: it {about['why']}"
                found.append(Problem("cut-off", text, whose))
    if excess := access.flooded(layout, api, record.broker, record.links):
        found.append(Problem("bindings-flooded", access.unneeded(excess)))
    return found


def _queues(
    layout: Layout, record: Record, api: Management, stopped: Collection[str], known: Collection[str] = ()
) -> list[Problem]:
    """Return the problems of queues: a queue is missing, is nearly full, or has mail but no consumer.

    :param known: keys of problems that were already found. One of them may cause an unread mailbox.
    """
    if record.broker is None:
        return []
    vhost, called = access.vhost(layout, record.broker), names.used(layout, record.broker)
    columns = "columns=name,messages,message_bytes,consumers"
    counted = {queue["name"]: queue for queue in api.get("queues", vhost, query=columns) or []}
    found = []
    kept: Mapping[str, Any] = counted.get(called.dead, {})
    full = policies.part(kept.get("messages") or 0, kept.get("message_bytes") or 0)
    if full >= FULL:
        text = f"the queue of dead letters is {full:.0%} full; at 100 %, dead letters stay in their mailboxes"
        found.append(Problem("dead-letters-full", text))
    wanted = {objects.way(link, called): link for link in record.links.values() if not objects.elsewhere(link)}
    for name, link in sorted(wanted.items()):
        whose = names.owner(name)
        queue: Mapping[str, Any] | None = counted.get(name)
        if queue is None:
            found.append(Problem("mailbox-missing", f"{whose} has no mailbox on the broker: apply again", whose))
            continue
        full = policies.fullness(link, queue.get("messages") or 0, queue.get("message_bytes") or 0)
        if full >= FULL:
            what = "drops the oldest" if link.bounds and link.full == "drop-head" else "accepts no messages at 100 %"
            found.append(Problem("mailbox-full", f"the mailbox of {whose} is {full:.0%} full, and {what}", whose))
        awaited = link.to_host is None and link.target not in stopped
        if awaited and queue.get("messages") and not queue.get("consumers"):
            text = f"nobody reads the mailbox of {whose}: {queue['messages']} messages wait"
            down = "peer-down" if peer.is_link(link) else f"entrance-shut:{link.target}"
            cause = next((key for key in ("forwarder-down", down) if key in known), "")
            found.append(Problem("mailbox-unread", text, whose, cause))
    return found


def _across(layout: Layout, record: Record, api: Management) -> list[Problem]:
    """Return the problems of links to other hosts that this host can observe."""
    if record.broker is None:
        return []
    called = names.used(layout, record.broker)
    found = [
        problems.across(name, "stalled", why)
        for name, why in sorted(peer_status.carried(layout, record, called, api).items())
        if why
    ]
    direct = sorted(peer_status.direct(layout, record, called, api).items())
    away = problems.hosts((told.away, told.reason) for _, told in direct if told.away)
    return [*found, *away, *(problems.across(name, *told[:3]) for name, told in direct if told.why)]
