"""Severing of links: ends them at once, at the broker and at the forwarder's routes to other hosts, without a plan.

The exchange that the sender writes to is deleted first, then the waiting messages. Nothing else is changed, and no lock
is needed. Later, another run removes the links from the record.
"""

from __future__ import annotations

from collections.abc import Collection

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker.access import management, vhost
from netspace.link.forwarder import closing
from netspace.link.topology import names, objects
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


def part(layout: Layout, broker: Broker, links: Collection[Link]) -> list[str]:
    """End these links to and from other hosts. Messages that wait here stay where they are.

    - The forwarder's routes of direct links to other hosts are closed, and connections over them end.
    - The exchanges that senders of other hosts, or senders of buffered links, write to are deleted.
    - The shovels of buffered links are deleted, so that nothing more leaves this host.

    :return: why a part of this failed. The other parts are done nevertheless.
    """
    failed = []
    try:
        closing.close(
            layout, {(link.source, link.to_host) for link in links if link.to_host and objects.elsewhere(link)}
        )
    except NetspaceError as err:
        failed.append(str(err))
    here = [link for link in links if not objects.elsewhere(link)]
    if not here:
        return failed
    called, place = names.used(layout, broker), vhost(layout, broker)
    try:
        with management(layout, broker) as api:
            for link in here:
                api.delete("exchanges", place, called.exchange(link))
            for link in filter(objects.carried, here):
                api.delete("parameters", "shovel", place, called.outbox(link))
    except NetspaceError as err:
        failed.append(str(err))
    return failed
