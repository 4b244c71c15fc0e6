"""Outgoing messages: checked against their link's limits, sealed if the link is, and given to its exchange's outlet."""

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
    """The path of all messages to peers. Nothing in it waits."""

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
        """Return a message for the broker, and the outlet to which to give it.

        :param more: ``reply_to`` and ``correlation_id``, as :meth:`Sealing.prepared` takes them.
        :raises Refused: it is larger than the peer's host accepts.
        :raises SealError: it can't be sealed.
        """
        what = f"the link to {peer.called}"
        raw, properties = self._sealing.prepared(
            content, peer.seal, peer.name, "message", id, urgent=urgent, durable=peer.durable, **more
        )
        if peer.message_size is not None and len(raw) > peer.message_size:
            raise Refused(f"{what}: {len(raw)} bytes; its host takes {peer.message_size} at most")
        return self._lines.outlet(peer.broker, peer.exchange, what), Parcel(raw, properties)

    def successor(self, peer: Peer) -> Peer | None:
        """Return the same peer under its link's new exchange, after the old one was revoked; None: there is no new one.

        It is looked up by the peer's own name: the local name may belong to another environment now, which must not get
        a message that was meant for this one.
        """
        again = self._host.card.peers.get(peer.name)
        return None if again is None or again.exchange == peer.exchange else again
