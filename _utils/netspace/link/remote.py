"""Links between hosts: the other hosts' identities, the ways to them, and the names of objects on them. Pure.

A direct link is made on the receiver's broker alone, where its sender logs in as itself: its own
127.0.0.1:5671 leads to every broker that its links need, and the name that it asks for in TLS says to which
(``forwarder``). A buffered link is made on both: the sender's broker keeps the mail in an outbox, and a shovel, which
logs in as that broker, takes it over. Names that both hosts use follow from a key of these two, and are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from netspace.link import authority, model
from netspace.link.names import Names
from netspace.spec.types import Broker, Link, LocalBroker, RemoteHost

PREFETCH = 8
"""Messages of a buffered link that are on their way at once: as many may come twice when a broker dies."""

RECONNECT = 2
"""Seconds after which a shovel that lost its way tries again."""


def identities(broker: Broker) -> dict[str, str]:
    """The SPIFFE ID of each other host."""
    if not isinstance(broker, LocalBroker):
        return {}
    return {name: authority.host_id(host.trust_domain, name) for name, host in broker.hosts.items()}


def known(broker: Broker, link: Link) -> RemoteHost | None:
    """Return the declaration of the host that a link leads to; None: it isn't declared (any more)."""
    return broker.hosts.get(link.to_host or "") if isinstance(broker, LocalBroker) else None


def most(broker: LocalBroker, link: Link) -> int:
    """Return the most bytes of a buffered link's message: a larger one would stay in the outbox, and all behind it."""
    host = known(broker, link)
    return broker.message_size if host is None else min(broker.message_size, host.message_size)


def there(link: Link, broker: Broker) -> Link:
    """A link to another host as that host names it."""
    environment, _, _ = link.target.partition("@")
    named: Link = msgspec.structs.replace(link, source=f"{link.source}@{broker.host}", target=environment)
    return named


def called(link: Link, broker: Broker, names: Names) -> Names:
    """Return the names of a link's objects on the other host that it leads to."""
    return names.over(str(link.to_host), str(broker.host))


def ways(broker: Broker, links: Collection[Link]) -> dict[str, dict[str, RemoteHost]]:
    """The other hosts whose brokers each environment talks to: those that its direct links lead to."""
    found: dict[str, dict[str, RemoteHost]] = {}
    for link in links:
        if model.elsewhere(link):
            host = known(broker, link)
            if host is not None and host.address is not None:
                found.setdefault(link.source, {})[str(link.to_host)] = host
    return found


def shovels(
    broker: Broker, outboxes: Mapping[str, Link], names: Names, vhost: str, anchors: Path, login: Path
) -> dict[str, dict[str, Any]]:
    """The shovel of each outbox, by its name.

    https://www.rabbitmq.com/docs/shovel-dynamic

    :param outboxes: the link of each; outboxes to a host that isn't declared are left out.
    :param vhost: of the links on this host's broker.
    :param anchors: file of the certificates that the other brokers are checked by.
    :param login: file of the key and the certificate by which this host's broker logs in there.
    """
    made = {}
    for queue, link in outboxes.items():
        host = known(broker, link)
        if host is None or host.address is None:
            continue
        made[queue] = {
            "src-protocol": "amqp091",
            "src-uri": f"amqp:///{quote(vhost, safe='')}",
            "src-queue": queue,
            "src-prefetch-count": PREFETCH,
            "dest-protocol": "amqp091",
            "dest-uri": _uri(host, anchors, login),
            "dest-exchange": called(link, broker, names).exchange(there(link, broker)),
            "dest-exchange-key": "",
            # A user id is checked against who logs in there: whose message it is says the exchange.
            "dest-publish-properties": {"user_id": f"{identity(broker)}/broker"},
            "dest-add-forward-headers": False,
            "ack-mode": "on-confirm",
            "reconnect-delay": RECONNECT,
        }
    return made


def identity(broker: Broker) -> str:
    """The SPIFFE ID of this host, as it is declared."""
    assert isinstance(broker, LocalBroker) and broker.host is not None and broker.trust_domain is not None
    return authority.host_id(broker.trust_domain, broker.host)


def _uri(host: RemoteHost, anchors: Path, login: Path) -> str:
    options = urlencode(
        {
            "cacertfile": anchors,
            "certfile": login,
            "keyfile": login,
            "verify": "verify_peer",
            "server_name_indication": host.trust_domain,
            "auth_mechanism": "external",
            "heartbeat": 5,
            "connection_timeout": 5000,
        },
        safe="/",
    )
    return f"amqps://{host.address}/{quote(host.vhost, safe='')}?{options}"
