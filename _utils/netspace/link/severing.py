"""Severing of links: deletes their objects at the broker at once, without a plan.

The exchange that the sender writes to is deleted first, then the waiting messages. Nothing else is changed, and no lock
is needed. Later, another run removes the links from the record.
"""

from __future__ import annotations

from collections.abc import Collection

from netspace.layout import Layout
from netspace.link.broker.access import management, vhost
from netspace.link.topology import names
from netspace.spec.types import Broker, Link


def sever(layout: Layout, broker: Broker, links: Collection[Link]) -> None:
    """Delete the exchanges of these links, and then their own queues with all messages.

    Without the exchange, the sender can't use the link: the broker closes its channel with 404 (NOT_FOUND).

    :raises NetspaceError: the broker can't do that now.
    """
    if not links:
        return
    called, place = names.used(layout, broker), vhost(layout, broker)
    with management(layout, broker) as api:
        for link in links:
            api.delete("exchanges", place, called.exchange(link))
        for link in links:
            if called.has_lane(link):
                api.delete("queues", place, called.queue(link))
