"""Received messages, and their acknowledgement, rejection and reply."""

from __future__ import annotations

import json
from types import TracebackType
from typing import TYPE_CHECKING, Any

from netspace_client.card import Sender
from netspace_client.seal import Opened
from netspace_client.wire import Delivery

if TYPE_CHECKING:
    from netspace_client.mailbox import Mailbox


class Message:
    """A received message. Until it is acknowledged, it is delivered again, to this program or its successor.

    ``async with message:`` acknowledges it at the end of the block, or requeues it if the block raises.

    :ivar sender: the environment that sent the message; can't be forged.
    :ivar id: the sender's id for the message, the same at each repetition; None: the sender gave no id.
    :ivar sealed_at: the time at which the sender sealed the message (seconds since 1970); None: the link is not sealed.
    :ivar redelivered: whether the message may have been delivered before.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        sender: Sender,
        queue: str,
        delivery: Delivery,
        opened: Opened | None = None,
    ) -> None:
        properties = delivery.properties
        self._mailbox = mailbox
        self._queue = queue
        self._delivery = delivery
        self._from = sender
        self.sender = sender.name
        self.id: str | None = properties.message_id or None
        self.body = delivery.body if opened is None else opened.body
        self.content_type: str | None = properties.content_type if opened is None else opened.content_type
        self.sealed_at = None if opened is None else opened.at
        self.correlation_id: str | None = properties.correlation_id
        self.reply_to: str | None = properties.reply_to
        self.redelivered = delivery.redelivered
        self.settled = False

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def wants_reply(self) -> bool:
        """True if the message is a request with an address for the answer."""
        back = self._from.reply_exchange
        return bool(back and self.reply_to and self.reply_to.startswith(back + "/"))

    async def reply(self, body: bytes | str, *, content_type: str | None = None, timeout: float = 60.0) -> bool:
        """Send an answer to the asker; return False if the asker no longer receives answers.

        :raises NotDeclared: the message is no request.
        """
        return await self._mailbox.reply(self, body, content_type=content_type, timeout=timeout)

    async def ack(self) -> None:
        """Acknowledge the message: the broker deletes it."""
        await self._mailbox._settle(self, "ack")

    async def requeue(self) -> None:
        """Put the message back into its queue: it is delivered again, until the broker's delivery limit."""
        await self._mailbox._settle(self, "requeue")

    async def reject(self) -> None:
        """Reject the message: the broker moves it to the dead letters."""
        await self._mailbox._settle(self, "reject")

    async def __aenter__(self) -> Message:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.settled:
            await (self.ack() if kind is None else self.requeue())

    def __repr__(self) -> str:
        return f"<Message {self.id} from {self.sender}, {len(self.body)} bytes>"
