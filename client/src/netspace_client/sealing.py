"""Sealing of outgoing and opening of incoming AMQP messages, for sealed links. Uses no connection."""

from __future__ import annotations

import asyncio
import logging
import time

from aiormq import spec

from netspace_client import jose, seal
from netspace_client.agreement import Agreed, Sessions
from netspace_client.card import Sender
from netspace_client.errors import LinkError, SealError
from netspace_client.host import Host
from netspace_client.keys import Ring
from netspace_client.seal import Opened, Sealed
from netspace_client.window import Window
from netspace_client.wire import Delivery

log = logging.getLogger("netspace_client")

WAIT_AGAIN = 30.0
URGENT = 9
"""The priority of urgent messages. Quorum queues treat 5 and more as high: two of these for each message below 5."""


class Sealing:
    """Sealing and opening of messages with the keys in the host's newest files.

    :param window: the ids of earlier messages.
    """

    def __init__(self, host: Host, window: Window) -> None:
        self._host = host
        self._window = window
        self._sessions = Sessions()
        self._mine, self._agreed = Ring(), Agreed()
        self._waited: dict[str, float] = {}
        self.refused = 0

    def prepared(
        self,
        content: tuple[bytes, str],
        sealed: Sealed | None,
        to: str,
        use: str,
        id: str,
        *,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        urgent: bool = False,
        durable: bool = True,
    ) -> tuple[bytes, spec.Basic.Properties]:
        """Return the body and the properties of a message for the broker, sealed if the link is sealed.

        :param content: the body and its type, from :func:`letter.content`.
        :param sealed: the seal of the link; None: the link isn't sealed.
        :param to: the receiver.
        :param use: ``message`` or ``answer``.
        :param durable: False: the broker need not write the message to disk before it confirms it.
        """
        raw, kind = content
        if sealed is not None:
            envelope = sealed.envelope(self._host.known.name, to, use, id, correlation_id or "", ours=True)
            afar = sealed.endorser is not None
            ours, now = self._keys(), time.time()
            raw = seal.seal(raw, kind, envelope, ours, sealed.keys, now, afar=afar, sessions=self._sessions)
            kind = seal.CONTENT_TYPE
        about = spec.Basic.Properties(
            content_type=kind,
            delivery_mode=2 if durable else 1,
            priority=URGENT if urgent else None,
            message_id=id,
            reply_to=reply_to,
            correlation_id=correlation_id,
        )
        return raw, about

    def opened(self, delivery: Delivery, sealed: Sealed | None, sender: str, use: str) -> Opened | None:
        """Open a sealed message and return its content; None: the link isn't sealed.

        :raises LinkError: the message wasn't sealed by *sender* for this environment.
        """
        if sealed is None:
            return None
        about = delivery.properties
        ids = (about.message_id or "", about.correlation_id or "")
        envelope = sealed.envelope(self._host.known.name, sender, use, *ids, ours=False)
        mine = self._keys()
        found = seal.open_sealed(
            delivery.body, envelope, mine, sealed.keys, time.time(), sealed.endorser, agreed=self._agreed
        )
        if self._window.too_old(sender, found.at):
            raise SealError("it is older than the oldest remembered id, so it may be a duplicate")
        return found

    def _keys(self) -> Ring:
        """Return our newest keys. If the keys were replaced, forget the old keys, and the keys agreed with them."""
        mine = self._host.keys
        if mine is not self._mine:
            self._mine, self._agreed = mine, Agreed()
            jose.loaded().forget()
        return mine

    def may_wait(self, sender: Sender) -> bool:
        """Return whether to wait a second for newer files of the host that may contain an unknown key of *sender*.

        The answer is True at most once in ``WAIT_AGAIN`` seconds for each sender. Otherwise a sender could block the
        receiver with invented keys.
        """
        now = asyncio.get_running_loop().time()
        if self._waited.get(sender.name, -WAIT_AGAIN) + WAIT_AGAIN > now:
            return False
        self._waited[sender.name] = now
        return True

    def refuse(self, err: LinkError, sender: str) -> None:
        """Count and log a message that could not be opened."""
        self.refused += 1
        log.warning("a message over the sealed link from %s was refused: %s", sender, err)
