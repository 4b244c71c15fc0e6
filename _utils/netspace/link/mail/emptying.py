"""Deletion of the messages that wait for one environment, before another program begins to read its queues."""

from __future__ import annotations

from netspace.layout import Layout
from netspace.link.broker.access import management, vhost
from netspace.link.record import Record
from netspace.link.topology import names
from netspace.link.topology.names import Names
from netspace.spec.types import Link


def empty(layout: Layout, record: Record, environment: str) -> None:
    """Delete the messages in the environment's mailbox, in the queues of links to it, and the answers to it.

    :raises NetspaceError: the broker can't do that now.
    """
    own = [link for link in record.links.values() if environment in (link.source, link.target)]
    if record.broker is None or not own:
        return
    queues, place = _queues(names.used(layout, record.broker), own, environment), vhost(layout, record.broker)
    with management(layout, record.broker) as api:
        for queue in sorted(queues):
            api.delete("queues", place, queue, "contents")


def _queues(called: Names, own: list[Link], environment: str) -> set[str]:
    found = {called.queue(link) for link in own if link.target == environment}
    if any(link.pattern == "request" and link.source == environment for link in own):
        found.add(called.replies(environment))
    return found
