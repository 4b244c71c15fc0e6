"""Card of an environment, which describes its links: the content of ``/run/netspace/environment.json``. Pure.

The schema is ``docs/environment.schema.json``, its description ``docs/environment-json.md``. The card contains no
secret: the key (or the password) is in a separate file beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from netspace.link.topology import draining, objects
from netspace.link.topology import peers as remote
from netspace.link.topology.draining import DrainingQueue
from netspace.link.topology.names import Names, account
from netspace.link.topology.objects import EVENTS
from netspace.spec.types import Broker, Link, LocalBroker

VERSION = 2
PORT, TLS_PORT = 5672, 5671
FOLDER = "/run/netspace"
SERVER_NAME = "localhost"


def card(
    name: str,
    links: Collection[Link],
    vhost: str,
    names: Names,
    formers: Collection[DrainingQueue] = (),
    identity: str | None = None,
    broker: Broker | None = None,
    passed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the card of environment *name*. Links of other environments are ignored.

    The card of an environment without links contains no mailbox and no broker.

    :param formers: the recorded draining queues, which may still hold messages for the environment.
    :param identity: the SPIFFE ID in its certificate; None: it logs in by password.
    :param broker: the declaration of this host's broker with the other hosts; needed if a link leads to another host.
    :param passed: the recorded exchanges of renamed senders.
    """
    peers = []
    senders = []
    own = broker if isinstance(broker, LocalBroker) else None
    queues = [names.mailbox(name)]
    for link in sorted(links, key=lambda link: link.name):
        if link.source == name:
            home = own if objects.elsewhere(link) else None
            # A direct link to another host has its objects there: use the link and the names as that host has them.
            known = link if home is None else remote.there(link, home)
            called = names if home is None else remote.called(link, home, names)
            peer: dict[str, Any] = {"to": link.target, "pattern": link.pattern, "exchange": called.exchange(known)}
            if link.local is not None:
                peer["as"] = link.local
            peer.update(link.narrowed)
            if not link.durable:
                peer["durable"] = False
            if link.pattern == "request":
                through = called.reply(known.target, known.from_host)
                peer["replies"] = {"queue": called.replies(known.source), "exchange": through}
            if link.monitor:
                peer["monitor"] = {"exchange": EVENTS, "queue": called.watched(known)}
            if home is not None:
                host = remote.known(home, link)
                if host is None:  # the host is no longer declared, so there is no route to it
                    continue
                if link.monitor:
                    peer["monitor"]["notices"] = called.notices(known.source)
                peer["broker"] = {"host": "127.0.0.1", "vhost": host.vhost, **_login(name, identity, host.trust_domain)}
                peer["message_size"] = int(host.message_size)
            elif own is not None and objects.carried(link):
                peer["message_size"] = int(remote.most(own, link))
            peers.append(peer)
        elif link.target == name:
            sender: dict[str, Any] = {"from": link.source, "pattern": link.pattern, "exchange": names.exchange(link)}
            sender.update(link.narrowed)
            if not link.durable:
                sender["durable"] = False
            if link.pattern == "request":
                sender["reply_exchange"] = names.reply(name, link.from_host)
            if names.has_lane(link):
                queues.append(names.queue(link))
            senders.append(sender)
    content: dict[str, Any] = {"version": VERSION, "name": name, "peers": peers, "senders": senders}
    if peers or senders:
        today = {f"{sender['from']}.{name}": sender for sender in senders}
        more, whose = draining.of(name, formers, names, links, passed)
        for exchange, was in sorted(whose.items()):
            if was in today:  # mail of a revoked link is not accepted any more
                senders.append({**today[was], "exchange": exchange, "former": True})
        content["mailbox"] = names.mailbox(name)
        content["queues"] = queues + more
        if any("monitor" in peer and "broker" not in peer for peer in peers):
            content["notices"] = names.notices(name)
        content["broker"] = {"host": "127.0.0.1", "vhost": vhost, **_login(name, identity)}
    return content


def _login(name: str, identity: str | None, server_name: str = SERVER_NAME) -> dict[str, Any]:
    from netspace.link.pki.certificates import ANCHORS, FILE, PASSWORD

    if identity is None:
        return {"port": PORT, "username": account(name), "password_file": f"{FOLDER}/{PASSWORD}"}
    tls = {
        "server_name": server_name,
        "ca_file": f"{FOLDER}/{ANCHORS}",
        "certificate_file": f"{FOLDER}/{FILE}",
        "key_file": f"{FOLDER}/{FILE}",
    }
    return {"port": TLS_PORT, "username": identity, "tls": tls}
