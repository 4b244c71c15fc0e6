"""Parked mail: messages in queues to which no link delivers any more. The module counts them and drops them on request.

Parked mail stays in its queue (``Record.parked``), even while the broker is stopped because there are no links.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import plan as planning
from netspace.link import record
from netspace.link.broker import access, node
from netspace.link.broker.management import Management
from netspace.link.record import Record
from netspace.link.topology import names
from netspace.plan import Plan, Step
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Supervisor

MAIL = "mail"


def emptied(layout: Layout, known: Record) -> tuple[str, ...]:
    """Return the recorded owners of parked mail whose mail is certainly gone.

    Mail can disappear if its link kept messages in memory: the queue is empty after the broker has ended. If the broker
    doesn't answer, no owner is returned.
    """
    if not known.parked or known.broker is None or not known.links:
        return ()
    try:
        with access.management(layout, known.broker) as api:
            there = _undeclared(layout, known, api)
            full = {names.owner(queue) for queue, messages in there.items() if messages}
            vhost = access.vhost(layout, known.broker)
            # The counts are up to 5 s old.
            full |= {
                names.owner(queue)
                for queue in there
                if names.owner(queue) not in full and access.has_mail(api, vhost, queue)
            }
    except NetspaceError:
        return ()
    return tuple(owner for owner in known.parked if owner not in full)


def plan(layout: Layout, owners: Collection[str], going: Collection[str]) -> Plan:
    """Return the plan of a purge: the mail to drop, by owner. Reads only.

    The broker's counts may miss messages of the last 10 s or so.

    :param owners: environments and links whose parked mail will be dropped.
    :param going: links that the same run revokes. If there are any, the run drops all mail to which no other link
        delivers.
    """
    known = record.read(layout)
    staying = {name: link for name, link in known.links.items() if name not in going}
    doomed = set(known.parked) if going else set(known.parked) & set(owners)
    if not staying:
        doomed |= set(known.parked) & {names.DEAD}
    if known.broker is None or not (doomed or going):
        return Plan()
    counts: dict[str, int | None] = dict.fromkeys(doomed)
    if known.links:
        try:
            with access.management(layout, known.broker) as api:
                there = _undeclared(layout, msgspec.structs.replace(known, links=staying), api)
        except NetspaceError:
            there = {}
        for queue, messages in there.items():
            whose = names.owner(queue)
            if messages and (going or whose in doomed):
                counts[whose] = (counts.get(whose) or 0) + messages
    changes = {
        whose: {"old": "mail" if number is None else f"{number} message{'' if number == 1 else 's'}", "new": None}
        for whose, number in sorted(counts.items())
    }
    return Plan([Step(planning.KIND, MAIL, "remove", changes, data=tuple(doomed))]) if changes else Plan()


def _undeclared(layout: Layout, known: Record, api: Management) -> dict[str, int]:
    """Return the mail queues that no recorded link needs, with the number of messages in each."""
    assert known.broker is not None
    called = names.used(layout, known.broker)
    wanted = {key[1] for key in planning.objects(layout, known.broker, known.links, called) if key[0] == "queue"}
    wanted |= {one.queue for one in known.former if one.environment or known.links}
    vhost = access.vhost(layout, known.broker)
    found: list[Mapping[str, Any]] = api.get("queues", vhost, query="columns=name,messages") or []
    # On a broker that hosts share, the queues of dead letters belong to all hosts.
    dead = not known.links and isinstance(known.broker, LocalBroker)
    return {
        one["name"]: one.get("messages") or 0
        for one in found
        if one["name"] not in wanted
        and (names.environments_of(one["name"], *names.MAIL) is not None or (dead and names.is_dead(one["name"])))
    }


def purge(layout: Layout, supervisor: Supervisor, progress: Callable[[str], None], step: Step) -> None:
    """Drop the mail of the owners in *step*; other parked mail stays."""
    known = record.read(layout)
    doomed: Collection[str] = step.data
    left = tuple(one for one in known.parked if one not in doomed)
    broker = known.broker
    assert broker is not None
    stopped = isinstance(broker, LocalBroker) and not known.links
    if left or not stopped:
        if stopped and isinstance(broker, LocalBroker):
            progress("starting the broker")
            node.start(layout, broker, supervisor, progress)
        with access.management(layout, broker) as api:
            for queue in _undeclared(layout, known, api):
                if names.owner(queue) in doomed:
                    api.delete("queues", access.vhost(layout, broker), queue)
    if stopped:
        node.remove(layout, supervisor, keep_data=bool(left))
    if known.links or left:
        record.write(layout, msgspec.structs.replace(known, parked=left))
    else:
        names.forget(layout)
        record.forget(layout)
