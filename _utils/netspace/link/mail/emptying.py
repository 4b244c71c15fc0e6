"""Deletion of the messages that wait for one environment, before another program begins to read its queues."""

from __future__ import annotations

from netspace.layout import Layout
from netspace.link.broker.access import management, vhost
from netspace.link.record import Record
from netspace.link.topology import names
from netspace.link.topology.names import Names
from netspace.spec.types import Link


def empty(layout: Layout, record: Record, environment: str) -> None:
    """Delete all messages that wait for an environment: in its mailbox, in queues of links to it, and answers.

    The bindings that its program made for answers are deleted first, so answers that come later are dropped.

    :raises NetspaceError: the broker can't do that now.
    """
    own = [link for link in record.links.values() if environment in (link.source, link.target)]
    if record.broker is None or not own:
        return
    called, place = names.used(layout, record.broker), vhost(layout, record.broker)
    queues, replies = _queues(called, own, environment), called.replies(environment)
    queues |= {former.queue for former in record.former if former.environment == environment}
    with management(layout, record.broker) as api:
        if replies in queues:
            columns = "columns=source,properties_key"
            for one in api.get("queues", place, replies, "bindings", query=columns) or []:
                if names.environments_of(one["source"], "reply") is not None:
                    api.delete("bindings", place, "e", one["source"], "q", replies, one["properties_key"])
        for queue in sorted(queues):
            api.delete("queues", place, queue, "contents")


def _queues(called: Names, own: list[Link], environment: str) -> set[str]:
    found = {called.queue(link) for link in own if link.target == environment}
    if any(link.pattern == "request" and link.source == environment for link in own):
        found.add(called.replies(environment))
    return found
