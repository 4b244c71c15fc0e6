"""Metrics of links for a monitoring system: messages, dead letters, expiries of certificates. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access
from netspace.link.broker.management import Management
from netspace.link.pki import authority, certificates
from netspace.link.record import Record
from netspace.link.topology import names, objects
from netspace.openmetrics import Family, counted, labels
from netspace.spec.types import Broker, LocalBroker
from netspace.supervision.service import Status

_QUEUES = "columns=name,messages,consumers,head_message_timestamp"
_EXCHANGES = "columns=name,message_stats.publish_in"


def families(layout: Layout, record: Record, services: Mapping[str, Status]) -> list[Family]:
    """Return the metrics of links.

    If the broker doesn't answer, there are only two metrics: the broker's state (down), and the expiries of
    certificates.
    """
    assert record.broker is not None
    state, *_ = access.ask(layout, record, services, whole=False)
    found = list(_expiries(layout, record, record.broker))
    up = state == "running"
    if up:
        try:
            with access.management(layout, record.broker) as api:
                found += _messages(layout, record, record.broker, api)
        except NetspaceError:
            up = False
    return [counted("netspace_broker_up", "gauge", "Whether the broker answers.", {"": up}), *found]


def _expiries(layout: Layout, record: Record, broker: Broker) -> Iterator[Family]:
    """Yield for each sort of certificate the time at which the first one expires."""
    if not isinstance(broker, LocalBroker):
        return
    ends: dict[str, float | None] = {}
    known = authority.read(layout)
    if known is not None:
        ends[labels(certificate="authority")] = known.ends
    issued = certificates.observe(layout, broker, objects.members(record.links.values()), 0.0).issued
    own = {None, certificates.CLIENT}
    for name, keys in (("broker", issued.keys() & own), ("environments", issued.keys() - own)):
        there = [one.ends for key in keys if (one := issued[key]) is not None]
        ends[labels(certificate=name)] = min(there, default=None)
    about = "The earliest end of a certificate of this sort."
    yield counted("netspace_certificate_expiry_timestamp_seconds", "gauge", about, ends)


def _messages(layout: Layout, record: Record, broker: Broker, api: Management) -> Iterator[Family]:
    vhost, called = access.vhost(layout, broker), names.used(layout, broker)
    queues = {one["name"]: one for one in api.get("queues", vhost, query=_QUEUES) or []}
    # netspace's own broker keeps no rates.
    told = [] if isinstance(broker, LocalBroker) else api.get("exchanges", vhost, query=_EXCHANGES) or []
    exchanges = {one["name"]: one for one in told}
    sent: dict[str, float | None] = {}
    for _, link in sorted(record.links.items()):
        by = labels(**{"from": link.source, "to": link.target})
        counts = exchanges.get(called.exchange(link), {}).get("message_stats") or {}
        sent[by] = counts.get("publish_in")
    yield counted("netspace_link_sent", "counter", "Messages sent along the link since the broker started.", sent)
    members = sorted(objects.members(record.links.values()))
    mailboxes = {labels(environment=name): queues.get(called.mailbox(name), {}) for name in members}
    waiting = {by: queue.get("messages") for by, queue in mailboxes.items()}
    yield counted("netspace_mailbox_waiting", "gauge", "Messages that wait in the mailbox.", waiting)
    lanes = {
        labels(**{"from": link.source, "to": link.target}): queues.get(called.queue(link), {}).get("messages")
        for _, link in sorted(record.links.items())
        if link.to_host is None and called.has_lane(link)
    }
    yield counted("netspace_link_waiting", "gauge", "Messages that wait in the link's own queue.", lanes)
    readers = {by: queue.get("consumers") for by, queue in mailboxes.items()}
    yield counted("netspace_mailbox_readers", "gauge", "Programs that read the mailbox.", readers)
    oldest = {by: _number(queue.get("head_message_timestamp")) for by, queue in mailboxes.items()}
    about = "Time of the oldest message, where the broker knows it."
    yield counted("netspace_mailbox_oldest_timestamp_seconds", "gauge", about, oldest)
    dead = {
        labels(kind=kind): queues.get(queue, {}).get("messages")
        for kind, queue in (("dead", called.dead), ("late", called.late))
    }
    yield counted("netspace_dead_letters", "gauge", "Messages that were rejected, or late.", dead)
    if isinstance(broker, LocalBroker):
        times = {name: one.get("times") for name, one in access.cut_off(layout, broker, api).items()}
        cut = {labels(environment=name): _number(times.get(name)) for name in members}
        yield counted("netspace_environment_cut_offs", "counter", "Connections that the broker ended.", cut)
        refused = access.refused_counts(layout, broker, api, members)
        by_name = {labels(environment=name): count for name, count in refused.items()}
        about = "Requests of the environment that the broker refused, such as to send where no link leads."
        yield counted("netspace_link_refused", "counter", about, by_name)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
