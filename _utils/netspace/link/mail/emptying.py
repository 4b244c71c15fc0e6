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

    Answers that come later find no way to it: the bindings that its program made for them are deleted first.

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
