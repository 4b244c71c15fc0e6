"""Work of the bridge: send each message to a local HTTP server; its response answers a request."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import SplitResult, urlsplit

import h11

from netspace_client.bridge import wire
from netspace_client.bridge.message import (
    HEADERS,
    MEDIA_TYPE,
    MessageError,
    Request,
    Response,
    dump_response,
    end_to_end,
    header_value,
    load_request,
)
from netspace_client.bridge.worker import Done
from netspace_client.message import Message

log = logging.getLogger("netspace_client.bridge")


class Forward:
    """A local HTTP server that gets each message.

    A message of type ``message/http`` contains the request in its body. The body of any other message is sent by
    ``POST`` to the URL's path. The request has the headers ``Netspace-Sender`` (can't be forged),
    ``Netspace-Message-Id`` and ``Netspace-Redelivered``. For a message that wants no answer, the response's status is
    the outcome: 200 to 399: the message is done; 400 to 499: it becomes a dead letter; 500 and above: it is sent to the
    server again.

    :param url: ``http://ADDRESS:PORT/PATH``.
    :param timeout: seconds to wait for a response.
    :raises ValueError: *url* doesn't have this form.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url}: expected http://ADDRESS:PORT/PATH")
        self._url: SplitResult = parts
        self._host, self._port = parts.hostname, parts.port or 80
        # RFC 3986, 3.2.2: an IPv6 address stands in brackets.
        self._authority = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._timeout = timeout

    async def __call__(self, message: Message) -> Done:
        """Send a message to the server; return the outcome."""
        try:
            request = self._request(message)
        except MessageError as err:
            log.warning("%r is not an HTTP request: %s", message, err)
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
        """Return the HTTP request for *message*.

        :raises MessageError: the message has type ``message/http``, but its body is no request.
        """
        if message.content_type == MEDIA_TYPE:
            held = load_request(message.body)
        else:
            kind = header_value(message.content_type or "application/octet-stream")
            held = Request(b"POST", (self._url.path or "/").encode(), ((b"content-type", kind),), message.body)
        own = [
            (b"host", self._authority.encode()),
            (b"netspace-sender", message.sender.encode()),
            (b"netspace-redelivered", b"true" if message.redelivered else b"false"),
        ]
        if message.id:
            own.append((b"netspace-message-id", header_value(message.id)))
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
            writer.write(wire.sent(connection, start, request.body))
            await writer.drain()
            found = await wire.received(connection, reader)
            if found is None or not isinstance(found[0], h11.Response):
                raise MessageError("the server ended the connection before its response was whole")
            return Response(found[0].status_code, tuple(found[0].headers), found[1])
        finally:
            writer.close()


def _told(status: int, text: str) -> tuple[bytes, str]:
    body = f"netspace: {text}\n".encode()
    return dump_response(Response(status, ((b"content-type", b"text/plain; charset=utf-8"),), body)), MEDIA_TYPE
