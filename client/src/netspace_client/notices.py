"""Events of the broker about the consumers of a peer's mailbox, for the monitors of that peer."""

from __future__ import annotations

import weakref

from netspace_client.card import Card
from netspace_client.ear import Ear, Ears
from netspace_client.errors import NotDeclared
from netspace_client.host import Host
from netspace_client.lines import Lines, settle
from netspace_client.monitor import Monitor
from netspace_client.session import Session
from netspace_client.wire import Delivery


class Notices:
    """The monitors of a program, and the readers of their notice queues."""

    def __init__(self, host: Host, lines: Lines) -> None:
        self._host = host
        self._lines = lines
        self._monitors: dict[str, weakref.WeakSet[Monitor]] = {}
        self.ears = Ears(lines, self._ear)

    def monitor(self, name: str) -> Monitor:
        """Return a new monitor of this peer.

        :raises NotDeclared: there is no such link, or it lacks ``monitor: true``.
        """
        peer = self._host.peer(name)
        if peer.monitor is None:
            us = self._host.card.name
            raise NotDeclared(f"{us} may not monitor {name}; declare the link with monitor: true")
        made = Monitor(name)
        # By the peer's own name, because the local name may be given to another peer later.
        self._monitors.setdefault(peer.name, weakref.WeakSet()).add(made)
        return made

    def follow(self, about: Card) -> None:
        """Read exactly the notice queues in the card, and end the monitors of links that are no longer in the card."""
        watched = [peer for peer in about.peers.values() if peer.monitor and peer.notices]
        self.ears.follow({(self._lines.session(peer.broker), peer.notices or "") for peer in watched})
        for name in self._monitors.keys() - about.peers.keys():
            for monitor in self._monitors.pop(name):
                monitor.revoked()

    def _ear(self, session: Session, queue: str) -> Ear:
        def heard(delivery: Delivery) -> None:
            self._tell(session, delivery)
            settle(delivery, "ack")

        return Ear(self._lines, session, queue, heard)

    def _tell(self, session: Session, delivery: Delivery) -> None:
        about = delivery.properties.headers or {}
        for peer in self._host.card.peers.values():
            here = self._lines.known(peer.broker) is session
            if here and peer.monitor == (delivery.exchange, about.get("queue")):
                came, at = delivery.routing_key == "consumer.created", about.get("timestamp_in_ms")
                for monitor in self._monitors.get(peer.name, ()):
                    if isinstance(at, int):
                        monitor.told(came, str(about.get("consumer_tag")), at / 1000)
