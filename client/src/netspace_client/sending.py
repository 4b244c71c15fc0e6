"""Outgoing messages: checked against their link's limits, sealed if the link is sealed, and given to an outlet."""

from __future__ import annotations

import asyncio

from netspace_client import narrowing
from netspace_client.card import Peer
from netspace_client.errors import Refused, TooFast
from netspace_client.host import Host
from netspace_client.lines import Lines
from netspace_client.narrowing import Paces
from netspace_client.outlet import Outlet, Parcel
from netspace_client.sealing import Sealing

Content = tuple[bytes, str]
"""A body and its type, from :func:`letter.content`."""


class Sending:
    """Preparation of all messages to peers: check of limits, seal, choice of the outlet. It never waits."""

    def __init__(self, host: Host, lines: Lines, sealing: Sealing) -> None:
        self._host = host
        self._lines = lines
        self._sealing = sealing
        self.paces = Paces()

    def narrow(self, peer: Peer, content: Content) -> None:
        """Check the declared limits of a link, which the receiver checks too.

        :raises Refused: the message's size or type isn't as declared.
        :raises TooFast: the message would exceed the declared rate.
        """
        try:
            narrowing.check(peer.narrowed, *content)
        except Refused as err:
            raise Refused(f"the link to {peer.called}: {err}") from None
        pace = self.paces.of(peer.exchange, peer.narrowed)
        if pace is None:
            return
        now = asyncio.get_running_loop().time()
        if (left := pace.wait(now)) > 0:
            raise TooFast(f"link to {peer.called}: more than {pace.rate:g} messages a second; retry in {left:.3f} s")
        pace.take(now)

    def parcel(self, peer: Peer, content: Content, id: str, urgent: bool, **more: str) -> tuple[Outlet, Parcel]:
        """Return a message for the broker, and the outlet that will publish it.

        :param more: ``reply_to`` and ``correlation_id``, as for :meth:`Sealing.prepared`.
        :raises Refused: the message is larger than the peer's host accepts.
        :raises SealError: the message can't be sealed.
        """
        what = f"the link to {peer.called}"
        raw, properties = self._sealing.prepared(
            content, peer.seal, peer.name, "message", id, urgent=urgent, durable=peer.durable, **more
        )
        if peer.message_size is not None and len(raw) > peer.message_size:
            raise Refused(f"{what}: {len(raw)} bytes; the receiver's host accepts {peer.message_size} at most")
        return self._lines.outlet(peer.broker, peer.exchange, what), Parcel(raw, properties)

    def successor(self, peer: Peer) -> Peer | None:
        """Return the same peer with its link's new exchange, after the old one was revoked; None: there is none.

        The peer is looked up by its own name. Its local name may belong to another environment now, which must not get
        a message that was meant for this peer.
        """
        again = self._host.card.peers.get(peer.name)
        return None if again is None or again.exchange == peer.exchange else again
