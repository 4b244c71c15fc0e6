"""Number of the messages that wait for environments, by the broker's counts, which are up to 5 s old."""

from __future__ import annotations

from collections.abc import Collection

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access
from netspace.link.record import Record
from netspace.link.topology import names


def waiting(layout: Layout, record: Record, environments: Collection[str]) -> dict[str, int]:
    """Return the number of messages in the mailbox and in the links' own queues of each environment.

    The result is empty if the broker doesn't answer.
    """
    if record.broker is None or not record.links:
        return {}
    try:
        with access.management(layout, record.broker) as api:
            queues = api.get("queues", access.vhost(layout, record.broker), query="columns=name,messages") or []
    except NetspaceError:
        return {}
    found = dict.fromkeys(environments, 0)
    for one in queues:
        ends = names.environments_of(one["name"], "mailbox", "lane")
        if ends is not None and ends[-1] in found:
            found[ends[-1]] += one.get("messages") or 0
    return found
