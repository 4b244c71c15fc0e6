"""Hand messages to a local HTTP server, with their sender in a header, and return its responses to the askers."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import SplitResult, urlsplit

import h11

from netspace_client.bridge.message import (
    HEADERS,
    MEDIA_TYPE,
    MessageError,
    Request,
    Response,
    dump_response,
    end_to_end,
    load_request,
)
from netspace_client.bridge.worker import Done
from netspace_client.message import Message

log = logging.getLogger("netspace_client.bridge")

ANSWER = 8 * 1024 * 1024
"""Bytes that a response's body may have; the broker's bound is mostly lower."""


class Forward:
    """A local HTTP server that messages are handed to.

    A message of type ``message/http`` is the request in its body; any other is a ``POST`` of its body to the URL's
    path. The server gets ``Netspace-Sender`` (certain), ``Netspace-Message-Id`` and ``Netspace-Redelivered``. For a
    message that wants no answer, the response's status decides: 200 to 399: the message is done; 400 to 499: it goes to
    the dead letters; 500 and above: it is sent to the server again.

    :param url: ``http://ADDRESS:PORT/PATH``.
    :param timeout: seconds that the server may take for a request.
    :raises ValueError: when *url* has another form.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url}: expected http://ADDRESS:PORT/PATH")
        self._url: SplitResult = parts
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout = timeout

    async def __call__(self, message: Message) -> Done:
        """Work on a message."""
        try:
            request = self._request(message)
        except MessageError as err:
            log.warning("%r is no HTTP request: %s", message, err)
            return Done("never", _told(400, f"not an HTTP request: {err}"))
        try:
            response = await asyncio.wait_for(self._ask(request), self._timeout)
        except asyncio.TimeoutError:
            return Done("later", _told(504, f"no answer within {self._timeout:g} s"))
        except (OSError, MessageError, h11.ProtocolError) as err:
            return Done("later", _told(502, str(err) or type(err).__name__))
        answer = (dump_response(response), MEDIA_TYPE)
        if response.status < 400:
            return Done("done", answer)
        return Done("never" if response.status < 500 else "later", answer)

    def _request(self, message: Message) -> Request:
        """Return the request that the server gets for *message*.

        :raises MessageError: when the message's type is that of a request, and its body holds none.
        """
        if message.content_type == MEDIA_TYPE:
            held = load_request(message.body)
        else:
            kind = (message.content_type or "application/octet-stream").encode("latin-1", "replace")
            held = Request(b"POST", (self._url.path or "/").encode(), ((b"content-type", _clean(kind)),), message.body)
        own = [
            (b"host", f"{self._url.hostname}:{self._port}".encode()),
            (b"netspace-sender", message.sender.encode()),
            (b"netspace-redelivered", b"true" if message.redelivered else b"false"),
        ]
        if message.id:
            own.append((b"netspace-message-id", _clean(message.id.encode("ascii", "replace"))))
        others = [(name, value) for name, value in end_to_end(held.headers) if name != b"host"]
        return Request(held.method, held.target, (*own, *others), held.body)

    async def _ask(self, request: Request) -> Response:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADERS)
            length = (b"content-length", b"%d" % len(request.body))
            start = h11.Request(
                method=request.method,
                target=request.target,
                headers=[*request.headers, length, (b"connection", b"close")],
            )
            for event in (start, h11.Data(data=request.body), h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            await writer.drain()
            return await _response(connection, reader)
        finally:
            writer.close()


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> Response:
    start: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            start = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > ANSWER:
                raise MessageError(f"the response has more than {ANSWER} bytes")
        elif isinstance(event, h11.EndOfMessage) and start is not None:
            return Response(start.status_code, tuple(start.headers), bytes(body))
        elif not isinstance(event, h11.InformationalResponse):
            raise MessageError("the server ended the connection before its response was whole")


def _clean(value: bytes) -> bytes:
    """Return a sender's text with visible characters only, as the value of a header (RFC 9110, 5.5)."""
    return bytes(byte if 0x20 < byte < 0x7F else 0x3F for byte in value)


def _told(status: int, text: str) -> tuple[bytes, str]:
    body = f"netspace: {text}\n".encode()
    return dump_response(Response(status, ((b"content-type", b"text/plain; charset=utf-8"),), body)), MEDIA_TYPE
