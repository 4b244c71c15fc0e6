"""A message that was received, and what its receiver does with it."""

from __future__ import annotations

import json
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aiormq.abc import DeliveredMessage

from netspace_client.card import Sender
from netspace_client.seal import Opened

if TYPE_CHECKING:
    from netspace_client.mailbox import Mailbox


class Message:
    """A message, until it is acknowledged: what isn't comes again, to this program or its successor.

    ``async with message:`` acknowledges it at the end of the work, or puts it back
    where the work fails.

    :ivar sender: the environment that sent it, known for certain.
    :ivar id: the sender's id for it, the same at each repetition; None: it gave none.
    :ivar sealed_at: when its sender sealed it (seconds since 1970); None: the link is not sealed.
    :ivar redelivered: it may have been handed out before.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        sender: Sender,
        queue: str,
        delivery: DeliveredMessage,
        opened: Opened | None = None,
    ) -> None:
        properties = delivery.header.properties
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
        self.redelivered = bool(delivery.redelivered)
        self.settled = False

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def wants_reply(self) -> bool:
        """It is a request, and says where its answer goes."""
        back = self._from.reply_exchange
        return bool(back and self.reply_to and self.reply_to.startswith(back + "/"))

    async def reply(self, body: bytes | str, *, content_type: str | None = None, timeout: float = 60.0) -> bool:
        """Answer a request, to the asker alone; False: the asker waits for answers no longer.

        :raises NotDeclared: it is no request.
        """
        return await self._mailbox.reply(self, body, content_type=content_type, timeout=timeout)

    async def ack(self) -> None:
        """The work is done: it doesn't come again."""
        await self._mailbox._settle(self, "ack")

    async def requeue(self) -> None:
        """Put it back: it comes again, until the broker's delivery limit."""
        await self._mailbox._settle(self, "requeue")

    async def reject(self) -> None:
        """It can't be worked on by anybody: the broker puts it with the dead letters."""
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
