"""State of the links to other hosts, as far as this host can observe it.

A direct link exists only on the other host's broker. This host logs in there with the sender's certificate and asks
whether the link's exchange exists; any account that knows the exchange's name may ask that. If the exchange is missing,
the link was revoked there or isn't applied yet, or the two hosts have different name keys; this host can't tell which.
For a buffered link, this host's own broker reports the state of the shovel.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access, amqp
from netspace.link.broker.management import Management
from netspace.link.pki import authority, certificates
from netspace.link.record import Record
from netspace.link.topology import names, objects, peers
from netspace.link.topology.names import Names
from netspace.spec.types import Link, LocalBroker

SECONDS = 5.0  # to wait for another host
REFUSED = 403
ABSENT = "isn't on {host}'s broker: revoked there, not applied there yet, or the hosts' keys of names differ"


class Told(NamedTuple):
    """State of a direct link to another host.

    :param state: ``active``, ``missing`` or ``unknown``.
    :param why: why the link isn't active; empty if it is active.
    :param away: the name of the other host, if it can't be asked; else empty.
    :param reason: why the other host can't be asked.
    """

    state: str
    why: str = ""
    away: str = ""
    reason: str = ""


def direct(layout: Layout, record: Record, called: Names, api: Management) -> dict[str, Told]:
    """Return the state of each direct link to another host."""
    links = [link for link in record.links.values() if objects.elsewhere(link)]
    broker = record.broker
    if not links or broker is None:
        return {}
    if not isinstance(broker, LocalBroker):  # hosts share one broker, so it can be asked directly
        exchanges = api.get("exchanges", access.vhost(layout, broker), query="columns=name") or []
        there = {one["name"] for one in exchanges}
        return {link.name: _told(called.exchange(link) in there, link) for link in links}
    found: dict[str, Told] = {}
    ways: dict[tuple[str, str], list[Link]] = {}
    for link in links:
        ways.setdefault((link.source, str(link.to_host)), []).append(link)
    away: dict[str, str] = {}  # hosts out of reach, which are asked only once
    for (source, host), theirs in sorted(ways.items()):
        try:
            if host in away:
                raise NetspaceError(away[host])
            with _connected(layout, broker, source, host) as connection:
                for link in theirs:
                    exchange = peers.called(link, broker, called).exchange(peers.there(link, broker))
                    found[link.name] = _told(connection.has_exchange(exchange), link)
        except (OSError, NetspaceError) as err:
            why = str(err)
            if isinstance(err, OSError) and not isinstance(err, (ssl.SSLError, FileNotFoundError)):
                away[host] = why
            for link in theirs:
                # If a sender has no link on the other broker, it has no account there, and its log-in is refused.
                refused = isinstance(err, amqp.ClosedError) and err.code == REFUSED
                unknown = Told("unknown", f"{host}'s broker can't be asked: {why}", host, why)
                found[link.name] = _told(False, link) if refused else unknown
    return found


def _told(there: bool, link: Link) -> Told:
    return Told("active") if there else Told("missing", ABSENT.format(host=link.to_host))


def _connected(layout: Layout, broker: LocalBroker, environment: str, host: str) -> amqp.Connection:
    known, where = authority.read(layout), broker.hosts.get(host)
    if known is None or where is None or where.address is None:
        raise NetspaceError("this host has no authority, or broker:hosts has no address of that host")
    context = ssl.create_default_context(cadata=known.anchors.decode())
    context.load_cert_chain(certificates.path(layout, environment))
    address, _, port = where.address.rpartition(":")
    return amqp.Connection(address.strip("[]"), int(port), where.vhost, context, where.trust_domain, None, SECONDS)


def carried(layout: Layout, record: Record, called: Names, api: Management) -> dict[str, str]:
    """Return, for each buffered link to another host, why its shovel doesn't run; an empty text if it runs."""
    outboxes = [(link.name, called.outbox(link)) for link in record.links.values() if objects.carried(link)]
    outboxes += [
        (names.owner(one.queue), one.queue) for one in record.former if names.environments_of(one.queue, "outbox")
    ]
    if record.broker is None or not outboxes:
        return {}
    shovels = api.get("shovels", access.vhost(layout, record.broker)) or []
    told: Mapping[Any, Mapping[str, Any]] = {one.get("name"): one for one in shovels}
    found: dict[str, str] = {}
    for name, outbox in outboxes:
        shovel = told.get(outbox, {"state": "absent"})
        why = ""
        if shovel.get("state") not in ("running", "flow"):  # flow: it runs, slowed down by the other broker
            # The shovel's reason contains object names, and may be long.
            reason = names.shown(str(shovel.get("reason") or ""))[:300]
            why = f"its mail is not carried over now ({shovel.get('state')}{': ' + reason if reason else ''})"
        found[name] = found.get(name) or why
    return found
