"""Reading and encoding of complete HTTP messages, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11

BODY = 8 * 1024 * 1024
"""The most bytes of a body. A link's own limit is mostly lower."""


async def received(
    connection: h11.Connection, reader: asyncio.StreamReader, waiting: Callable[[], None] = lambda: None
) -> tuple[h11.Request | h11.Response, bytes] | None:
    """Read one message; return its start line with the headers, and its body. None: the connection ended before.

    :param waiting: called each time before more bytes are read.
    :raises h11.RemoteProtocolError: the bytes are not HTTP, or the body has more than :data:`BODY` bytes.
    """
    start: h11.Request | h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            waiting()
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request | h11.Response):
            start = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY:
                raise h11.RemoteProtocolError(f"the body has more than {BODY} bytes", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and start is not None:
            return start, bytes(body)
        elif not isinstance(event, h11.InformationalResponse):
            return None


def sent(connection: h11.Connection, start: h11.Request | h11.Response, body: bytes) -> bytes:
    """Return the bytes of one message.

    :raises h11.LocalProtocolError: the message isn't valid HTTP.
    """
    events = (start, h11.Data(data=body), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)
