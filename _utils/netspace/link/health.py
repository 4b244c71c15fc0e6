"""Health of links: broker, alarms, accounts that were cut off, forwarder, full or unread mailboxes, dead letters.

Changes nothing. The broker's message counts are up to 5 s old.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import peer_status, plan
from netspace.link.broker import access, loopback
from netspace.link.broker.management import Management
from netspace.link.forwarder import entrance, haproxy, process
from netspace.link.mail import dead_letters
from netspace.link.pki import authority, certificates, renewer
from netspace.link.record import Record, read
from netspace.link.seal import peers
from netspace.link.topology import names, objects
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Supervisor

FULL = 0.8
"""The fill ratio from which a queue is reported as nearly full."""

TOLD_SECONDS = 3600.0
"""Seconds for which ``health`` reports that an account was cut off."""


def health(layout: Layout, supervisor: Supervisor, stopped: Collection[str] = ()) -> dict[str, Any]:
    """Return ``{ok, problems: [text], dead, late}``; the numbers of dead letters and late ones are None if unknown.

    :param stopped: environments that are stopped on purpose, so that nothing reads their mailboxes.
    """
    record = read(layout)
    problems = plan.parked_notes(record.parked)
    if record.broker is None or not record.links:
        none = None if names.DEAD in record.parked else 0
        return {"ok": not problems, "problems": problems, "dead": none, "late": none}
    dead = late = None
    services = supervisor.observe()
    status = services.get(process.NAME)
    if status is None or status.state != "running":
        problems.append("the forwarder doesn't run: environments can't reach the broker")
    elif why := haproxy.silent(layout):
        problems.append(f"the forwarder doesn't do its work ({why}): environments can't reach the broker; apply again")
    members = objects.members(record.links.values())
    problems += [f"the forwarder leaves out {name}: {why}" for name, why in entrance.left_out(layout, members).items()]
    shut = entrance.shut(layout, members)
    problems += [f"{name} can't reach the broker: {why}" for name, why in sorted(shut.items())]
    issued = certificates.observe(layout, record.broker, members, time.time())
    if lacking := list(issued.changes(record.broker, members)):
        problems.append(f"{', '.join(lacking[:10])}: to be issued anew; apply again")
    known = authority.read(layout) if isinstance(record.broker, LocalBroker) else None
    if known is not None and known.source and time.time() > known.ends - (known.ends - known.begins) / 3:
        until = time.strftime("%Y-%m-%d", time.gmtime(known.ends))
        problems.append(
            f"the authority of links (broker:authority) runs out on {until}: all links end then; have another"
        )
    problems += peers.read(layout, record.broker, record.links.values()).lacking(record.links.values(), time.time())
    if isinstance(record.broker, LocalBroker) and (open_ := loopback.state(layout, record.broker)) != "intact":
        why = "this kernel has no nftables" if open_ == "unsupported" else "their nftables table is missing or changed"
        problems.append(f"any user of the host reaches the broker's ports: {why}; see docs/links.md")
    if renewer.lacking(services.get(renewer.NAME), isinstance(record.broker, LocalBroker)):
        problems.append("the renewer of certificates doesn't run; apply again")
    state, detail, *_ = access.ask(layout, record, services, whole=False)
    if state != "running":
        problems.append(f"the broker is {state}{': ' + detail if detail else ''}; links are unknown")
    else:
        try:
            with access.management(layout, record.broker) as api:
                problems += _alarms(api)
                problems += _floods(layout, record, api)
                problems += _queues(layout, record, api, stopped)
                problems += _across(layout, record, api)
                dead, late = dead_letters.Letters(layout).number(api)
        except NetspaceError as err:
            problems.append(f"the broker doesn't say how it is: {err}")
    if dead:  # late ones are no problem: they expired or were dropped as declared or requested
        problems.append(f"{dead} dead letters")
    return {"ok": not problems, "problems": problems, "dead": dead, "late": late}


def _alarms(api: Management) -> list[str]:
    found = []
    for one in api.get("nodes", query="columns=name,running,mem_alarm,disk_free_alarm") or []:
        if one.get("running") is False:
            found.append(f"{one.get('name')}, a node of the broker, doesn't run")
        for key, text in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if one.get(key):
                found.append(f"{one.get('name')} is short of {text}: it accepts no messages")
    return found


def _floods(layout: Layout, record: Record, api: Management) -> list[str]:
    """Return problems: accounts that were cut off in the last hour, with the reasons, and excess bindings."""
    if record.broker is None:
        return []
    found = []
    if isinstance(record.broker, LocalBroker):
        for whose, about in sorted(access.cut_off(layout, record.broker, api).items()):
            if time.time() - about["at"] < TOLD_SECONDS:
                when = time.strftime("%H:%M:%S UTC", time.gmtime(about["at"]))
                found.append(f"{whose} was cut off {about['times']} times, last at {when}: it {about['why']}")
    if excess := access.flooded(layout, api, record.broker, record.links):
        found.append(access.unneeded(excess))
    return found


def _queues(layout: Layout, record: Record, api: Management, stopped: Collection[str]) -> list[str]:
    """Return problems of queues: a queue is missing, or nearly full, or has mail and no consumer."""
    if record.broker is None:
        return []
    vhost, called = access.vhost(layout, record.broker), names.used(layout, record.broker)
    columns = "columns=name,messages,message_bytes,consumers"
    counted = {queue["name"]: queue for queue in api.get("queues", vhost, query=columns) or []}
    found = []
    kept: Mapping[str, Any] = counted.get(called.dead, {})
    full = objects.part(kept.get("messages") or 0, kept.get("message_bytes") or 0)
    if full >= FULL:
        found.append(f"the place for dead letters is {full:.0%} full; then they fill the mailboxes that they died in")
    wanted = {objects.way(link, called): link for link in record.links.values() if not objects.elsewhere(link)}
    for name, link in sorted(wanted.items()):
        whose = names.owner(name)
        queue: Mapping[str, Any] | None = counted.get(name)
        if queue is None:
            found.append(f"{whose} has no mailbox on the broker: apply again")
            continue
        full = objects.fullness(link, queue.get("messages") or 0, queue.get("message_bytes") or 0)
        if full >= FULL:
            what = "drops the oldest" if link.bounds and link.full == "drop-head" else "takes no more at 100 %"
            found.append(f"the mailbox of {whose} is {full:.0%} full, and {what}")
        awaited = link.to_host is None and link.target not in stopped
        if awaited and queue.get("messages") and not queue.get("consumers"):
            found.append(f"nobody reads the mailbox of {whose}: {queue['messages']} messages wait")
    return found


def _across(layout: Layout, record: Record, api: Management) -> list[str]:
    """Return problems of links to other hosts, as far as this host can observe them."""
    if record.broker is None:
        return []
    called = names.used(layout, record.broker)
    found = peer_status.carried(layout, record, called, api)
    found.update({name: why for name, (_, why) in peer_status.direct(layout, record, called, api).items()})
    return [f"{name}: {why}" for name, why in sorted(found.items()) if why]
