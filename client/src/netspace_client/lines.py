"""Sessions with brokers and outlets into exchanges, kept as long as the card contains the broker or exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from netspace_client.card import Broker, Card
from netspace_client.host import Host
from netspace_client.outlet import Outlet
from netspace_client.session import Place, Session
from netspace_client.wire import Delivery

CHANNELS = 40
"""The most open channels of a program. The broker permits 64 per account, for all programs of an environment."""


class Lines:
    """The sessions of a program, one per broker, and its outlets, one per exchange in use.

    :param confirm: seconds that an outlet waits for a confirmation before it tries another connection.
    """

    def __init__(self, host: Host, confirm: float) -> None:
        self._host = host
        self._confirm = confirm
        self.sessions: dict[Place, Session] = {}
        # By session too: an exchange on another host's broker may have the same name.
        self.outlets: dict[tuple[Session, str], Outlet] = {}
        self._errands: set[asyncio.Task[None]] = set()

    def session(self, broker: Broker) -> Session:
        """Return the session with *broker*; start a session if there is none."""
        to = place(broker)
        session = self.sessions.get(to)
        if session is None:
            session = self.sessions[to] = Session(to, lambda: self._login(to, broker))
        return session

    def known(self, broker: Broker) -> Session | None:
        """Return the session with *broker*; None if no session was started."""
        return self.sessions.get(place(broker))

    def outlet(self, broker: Broker, exchange: str, what: str) -> Outlet:
        """Return the outlet into *exchange*; make an outlet if there is none.

        :param what: the name of the link in errors.
        """
        session = self.session(broker)
        outlet = self.outlets.get((session, exchange))
        if outlet is None:
            outlet = self.outlets[session, exchange] = Outlet(session, exchange, what, self._room, self._confirm)
        return outlet

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* in the background."""
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def follow(self, about: Card) -> None:
        """Close sessions and idle outlets that are no longer in the card."""
        for moved in self.sessions.keys() - {place(broker) for broker in about.brokers}:
            self.later(self.sessions.pop(moved).close())
        named = {(self.known(peer.broker), peer.exchange) for peer in about.peers.values()}
        if about.broker is not None:
            own = self.known(about.broker)
            named |= {(own, sender.reply_exchange) for sender in about.senders.values() if sender.reply_exchange}
        for key in [key for key, outlet in self.outlets.items() if key not in named and outlet.idle]:
            self.later(self.outlets.pop(key).close())

    async def close(self) -> None:
        for outlet in self.outlets.values():
            await outlet.close()
        for session in self.sessions.values():
            await session.close()
        await asyncio.gather(*self._errands, return_exceptions=True)

    def _login(self, to: Place, known: Broker) -> Broker:
        """Return the broker with its log-in from the newest card; return *known* if the card lacks the broker."""
        return next((one for one in self._host.card.brokers if place(one) == to), known)

    def _room(self) -> None:
        """Close idle channels if more than ``CHANNELS`` are open."""
        opened = [outlet for outlet in self.outlets.values() if outlet.open]
        for outlet in opened[: max(0, len(opened) - CHANNELS)]:
            outlet.release()


def place(broker: Broker) -> Place:
    return (broker.host, broker.port, broker.vhost, broker.server_name or "")


def settle(delivery: Delivery, how: str) -> None:
    """Settle a message at the broker: ``ack``, ``requeue`` or ``reject``.

    If the connection is lost, nothing is sent. The broker redelivers the message, which is then recognized by its id.
    """
    if not delivery.wire.closed:
        delivery.wire.settle(delivery.delivery_tag, how)
