"""Links between hosts: SPIFFE IDs of other hosts, routes and shovels to them, and object names on them. Pure.

A direct link has objects on the receiver's broker only. Its sender logs in at that broker with its own certificate:
127.0.0.1:5671 in its environment leads to all brokers that its links need, and the TLS server name selects one
(``forwarder``). A buffered link has objects on both brokers: the sender's broker keeps the mail in an outbox, and a
shovel, which logs in with that broker's certificate, moves it to the receiver's broker. Both hosts compute the same
object names, from the key that only they have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from netspace.link.topology import objects, spiffe
from netspace.link.topology.names import Names
from netspace.spec.types import Broker, Link, LocalBroker, RemoteHost

PREFETCH = 8
"""The most unconfirmed messages of a shovel. As many may be delivered twice if a broker is killed."""

RECONNECT = 2
"""Seconds until a shovel that lost its connection tries again."""


def identities(broker: Broker) -> dict[str, str]:
    """Return the SPIFFE ID of each other declared host, by name."""
    if not isinstance(broker, LocalBroker):
        return {}
    return {name: spiffe.host_id(host.trust_domain, name) for name, host in broker.hosts.items()}


def known(broker: Broker, link: Link) -> RemoteHost | None:
    """Return the declaration of the host to which a link leads; None if it isn't declared (any more)."""
    return broker.hosts.get(link.to_host or "") if isinstance(broker, LocalBroker) else None


def most(broker: LocalBroker, link: Link) -> int:
    """Return the largest size in bytes of a buffered link's message: the lower limit of the two brokers.

    If the other broker refused a message, this message would block all later ones in the outbox.
    """
    host = known(broker, link)
    return broker.message_size if host is None else min(broker.message_size, host.message_size)


def there(link: Link, broker: Broker) -> Link:
    """Return a link to another host as that host sees it: from ``<source>@<this host>`` to a local environment."""
    environment, _, _ = link.target.partition("@")
    named: Link = msgspec.structs.replace(link, source=f"{link.source}@{broker.host}", target=environment)
    return named


def called(link: Link, broker: Broker, names: Names) -> Names:
    """Return the names of a link's objects on the broker of the host to which it leads."""
    return names.over(str(link.to_host), str(broker.host))


def ways(broker: Broker, links: Collection[Link]) -> dict[str, dict[str, RemoteHost]]:
    """Return, for each environment, the other hosts to which its direct links lead."""
    found: dict[str, dict[str, RemoteHost]] = {}
    for link in links:
        if objects.elsewhere(link):
            host = known(broker, link)
            if host is not None and host.address is not None:
                found.setdefault(link.source, {})[str(link.to_host)] = host
    return found


def shovels(
    broker: Broker, outboxes: Mapping[str, Link], names: Names, vhost: str, anchors: Path, login: Path
) -> dict[str, dict[str, Any]]:
    """Return the settings of the shovel of each outbox, by the outbox's name.

    https://www.rabbitmq.com/docs/shovel-dynamic

    :param outboxes: the link of each outbox. Outboxes to undeclared hosts are left out.
    :param vhost: the virtual host of the links on this host's broker.
    :param anchors: the file of the trusted certificates for other brokers.
    :param login: the file of the key and the certificate by which this host's broker logs in at others.
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
            # RabbitMQ compares a message's user_id with the account that publishes, so it must name this host's broker.
            # The exchange identifies the sending environment.
            "dest-publish-properties": {"user_id": f"{identity(broker)}/broker"},
            "dest-add-forward-headers": False,
            "ack-mode": "on-confirm",
            "reconnect-delay": RECONNECT,
        }
    return made


def identity(broker: Broker) -> str:
    """Return the declared SPIFFE ID of this host."""
    assert isinstance(broker, LocalBroker) and broker.host is not None and broker.trust_domain is not None
    return spiffe.host_id(broker.trust_domain, broker.host)


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
