"""State of links and mailboxes for operators, and the number of a mailbox's consumers. Changes nothing."""

from __future__ import annotations

from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import peer_status, plan, problems
from netspace.link.broker import access, listening, node
from netspace.link.forwarder import entrance, haproxy
from netspace.link.mail import parked
from netspace.link.peer_status import Told
from netspace.link.problems import Problem
from netspace.link.record import plain, read
from netspace.link.topology import names, objects
from netspace.spec.types import Broker, LocalBroker
from netspace.supervision.service import Supervisor


def links(layout: Layout, supervisor: Supervisor) -> dict[str, Any]:
    """Return the links with their states, and the mailboxes.

    The states are ``active``, ``missing``, ``stalled`` and ``unknown``. ``missing``: the link isn't on the broker.
    ``stalled``: the link is there, but its shovel doesn't run, or an environment of this host can't reach the broker. A
    link that isn't ``active`` has a ``why`` if the reason is known. It has ``depends_on`` if a problem in ``findings``
    (``problems.Problem``) is the cause.
    """
    record = read(layout)
    listed: dict[str, Any] = {"links": {}, "mailboxes": {}, "findings": [], "parked": list(record.parked)}
    if record.broker is None or not record.links:
        return {"broker": {"state": "absent"}, **listed}
    state, detail, definitions, _ = access.ask(layout, record, supervisor.observe([node.NODE]))
    there: objects.Objects = {}
    beyond: dict[str, Told] = {}
    shut: dict[str, str] = {}
    found: list[Problem] = []
    called = names.used(layout, record.broker)
    if definitions is not None:
        there = plan.found(layout, record.broker, objects.accounts(record.links.values(), called), definitions).objects
        try:
            with access.management(layout, record.broker) as api:
                queues = (
                    api.get("queues", access.vhost(layout, record.broker), query="columns=name,messages,consumers")
                    or []
                )
                stalled = peer_status.carried(layout, record, called, api)
                beyond = {name: Told("stalled", why) for name, why in stalled.items() if why}
                beyond.update(peer_status.direct(layout, record, called, api))
            gone = parked.emptied(layout, record)
            listed["parked"] = [owner for owner in record.parked if owner not in gone]
        except NetspaceError as err:
            detail, queues = str(err), []
        counts = {queue["name"]: queue for queue in queues}
        for environment in sorted(objects.members(record.links.values())):
            queue = counts.get(called.mailbox(environment), {})
            listed["mailboxes"][environment] = {key: queue.get(key) for key in ("messages", "consumers")}
        silent = haproxy.silent(layout)
        shut = entrance.closed(layout, objects.entered(record.links.values()), silent)
        found += problems.forwarder("running", silent) or [
            problems.entrance(name, f"{name} can't reach the broker: {why}") for name, why in sorted(shut.items())
        ]
        found += problems.hosts((told.away, told.reason) for told in beyond.values() if told.away)
        for key, queue_of in (("dead", called.dead), ("late", called.late)):
            listed[key] = counts.get(queue_of, {}).get("messages")
    found += problems.broker(state, detail)
    keys = {one.key for one in found}
    for name, link in sorted(record.links.items()):
        on_broker = all(key in there for key in objects.of_link(link, called))
        told = Told("unknown" if definitions is None else "active" if on_broker else "missing")
        if objects.elsewhere(link):
            told = beyond.get(name, Told("unknown"))
        elif told.state == "active":
            told = beyond.get(name, told)
        cause = f"host-unreachable:{told.away}" if told.away else "broker-down" if told.state == "unknown" else ""
        if told.state == "active" and (ends := [end for end in link.here if end in shut]):
            told = Told("stalled", f"{ends[0]} can't reach the broker: {shut[ends[0]]}")
            cause = f"entrance-shut:{ends[0]}" if f"entrance-shut:{ends[0]}" in keys else "forwarder-down"
        listed["links"][name] = {**(plain(link) or {}), "state": told.state, **({"why": told.why} if told.why else {})}
        if cause in keys:
            listed["links"][name]["depends_on"] = cause
    listed["findings"] = problems.rows(found)
    kind = "local" if isinstance(record.broker, LocalBroker) else "cluster"
    about = {"kind": kind, "state": state, "vhost": access.vhost(layout, record.broker)}
    return {"broker": {**about, "detail": detail} if detail else about, **listed}


def readers(layout: Layout, environment: str) -> int:
    """Return the number of consumers of an environment's mailbox.

    The function counts entries of ``consumer_details``. A new consumer appears in that list within 5 s; a consumer that
    has ended disappears from it at once. The broker's field ``consumers`` isn't used: it counts an ended consumer for
    10 s more, so a program that restarts would seem to read.

    :raises NetspaceError: the environment has no mailbox, the broker doesn't answer, or programs of the environment
        can't reach the broker.
    """
    record = read(layout)
    if record.broker is None:
        raise NetspaceError(f"there is no link, and so no mailbox of {environment}")
    called = names.used(layout, record.broker)
    with access.management(layout, record.broker) as api:
        where = ("queues", access.vhost(layout, record.broker), called.mailbox(environment))
        queue = api.get(*where, query="columns=consumer_details.consumer_tag")
    if queue is None:
        raise NetspaceError(f"there is no mailbox of {environment} on the broker")
    if "consumer_details" not in queue:
        raise NetspaceError(f"the broker does not list (yet) the readers of the mailbox of {environment}")
    count = len(queue["consumer_details"])
    if not count and (why := _unreachable(layout, record.broker, environment)):
        raise NetspaceError(f"nobody can read the mailbox of {environment}: {why}")  # the program isn't at fault
    return count


def _unreachable(layout: Layout, broker: Broker, environment: str) -> str:
    """Return why programs of an environment can't reach the broker; empty if they can."""
    deaf = listening.unanswered(layout, broker) if isinstance(broker, LocalBroker) else ""
    silent = deaf or haproxy.silent(layout)
    return silent or entrance.shut(layout, [environment]).get(environment, "")
