"""HTTP server on ``lo`` for local programs that use links: ``POST /orders/books`` asks ``orders`` for ``/books``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection

import h11

from netspace_client.bridge import wire
from netspace_client.bridge.message import (
    HEADERS,
    MEDIA_TYPE,
    MessageError,
    Request,
    Response,
    dump_request,
    end_to_end,
    header_value,
    load_response,
)
from netspace_client.errors import (
    LinkError,
    MailboxFull,
    NotDeclared,
    Refused,
    Revoked,
    Timeout,
    TooFast,
    Unreachable,
)
from netspace_client.mailbox import Mailbox

log = logging.getLogger("netspace_client.bridge")

CONNECTIONS = 64
"""The most connections served at once; others wait."""
IDLE_SECONDS = 60.0
"""Seconds that a connection may wait for its next request, or for the rest of one."""

_STATUS: tuple[tuple[type[LinkError], int], ...] = (
    (Revoked, 410),
    (NotDeclared, 404),
    (Refused, 413),
    (TooFast, 429),
    (MailboxFull, 503),
    (Timeout, 504),
    (Unreachable, 502),
)


class Server:
    """The HTTP server.

    :param timeout: seconds to wait for a peer's answer.
    :param raw: peers without a bridge; they get only the body of a request.
    """

    def __init__(self, mailbox: Mailbox, *, timeout: float = 60.0, raw: Collection[str] = ()) -> None:
        self._mailbox = mailbox
        self._timeout = timeout
        self._raw = frozenset(raw)
        self._places = asyncio.Semaphore(CONNECTIONS)

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Open the listening socket and return its server."""
        return await asyncio.start_server(self._connected, host, port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._places:
                await self._converse(reader, writer)
        except (OSError, asyncio.TimeoutError, h11.ProtocolError) as err:
            log.debug("a local connection ended: %s", err)
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read and answer the requests of one connection, one after another."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS)
        while True:
            try:
                request = await asyncio.wait_for(_request(connection, reader, writer), IDLE_SECONDS)
            except h11.RemoteProtocolError as err:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await _respond(connection, writer, _plain(err.error_status_hint, str(err)), close=True)
                return
            if request is None:
                return
            response = await self.answer(request)
            if request.method == b"HEAD":
                response = Response(response.status, response.headers)
            await _respond(connection, writer, response)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def answer(self, request: Request) -> Response:
        """Send *request* to a peer and return its response; a failure becomes a response with the reason."""
        _, _, path = request.target.partition(b"/")
        named, _, rest = path.partition(b"/")
        name, _, query = named.partition(b"?")
        peer = name.decode("ascii", "replace")
        if not peer:
            return self._index()
        target = b"/" + rest + (b"?" + query if query else b"")
        try:
            return await self._along(peer, Request(request.method, target, request.headers, request.body))
        except MessageError as err:
            return _plain(502, f"the answer of {peer}: {err}")
        except LinkError as err:
            status = next((code for kind, code in _STATUS if isinstance(err, kind)), 502)
            return _plain(status, f"{type(err).__name__}: {err}")

    async def _along(self, peer: str, request: Request) -> Response:
        link = self._mailbox.card.called.get(peer)
        kind, body = MEDIA_TYPE, b""
        # ``raw`` may list either of the peer's names, whichever the URL uses.
        names = {peer} if link is None else {link.name, link.local}
        if names & self._raw:
            given = dict(end_to_end(request.headers)).get(b"content-type", b"application/octet-stream")
            kind, body = given.decode("latin-1"), request.body
        else:
            body = dump_request(request, (peer if link is None else link.name).encode())
        if link is not None and link.pattern == "send":
            identity = await self._mailbox.send(peer, body, timeout=self._timeout, content_type=kind)
            return Response(202, ((b"netspace-message-id", identity.encode()),))
        answer = await self._mailbox.call(peer, body, self._timeout, content_type=kind)
        if answer.content_type == MEDIA_TYPE:
            return load_response(answer.body)
        told = header_value(answer.content_type or "application/octet-stream")
        return Response(200, ((b"content-type", told),), answer.body)

    def _index(self) -> Response:
        """Return a response that lists the peers to which this environment may send."""
        peers = [
            {"peer": link.peer, "pattern": link.pattern} for link in self._mailbox.links() if link.direction == "to"
        ]
        body = json.dumps({"name": self._mailbox.name, "peers": peers}).encode()
        return Response(200, ((b"content-type", b"application/json"),), body)


def _plain(status: int, text: str) -> Response:
    return Response(status, ((b"content-type", b"text/plain; charset=utf-8"),), f"netspace: {text}\n".encode())


async def _request(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """Read one request; return None if the connection ended before a request."""

    def go_on() -> None:
        if connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    found = await wire.received(connection, reader, go_on)
    if found is None or not isinstance(found[0], h11.Request):
        return None
    return Request(found[0].method, found[0].target, tuple(found[0].headers), found[1])


async def _respond(
    connection: h11.Connection, writer: asyncio.StreamWriter, response: Response, *, close: bool = False
) -> None:
    # Netspace-* headers of the peer were dropped when its answer was read; those here are the bridge's own.
    headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    if close:
        headers.append((b"connection", b"close"))
    start = h11.Response(status_code=response.status, headers=headers)
    writer.write(wire.sent(connection, start, response.body))
    await writer.drain()
