"""HTTP requests and responses as bodies of messages: media type ``message/http`` (RFC 9112, section 10.1). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import h11

from netspace_client.bridge import wire

MEDIA_TYPE = "message/http"
HEADERS = 64 * 1024
"""The most bytes of the header section of a request or response."""

Header = tuple[bytes, bytes]
# RFC 9110, 7.6.1: headers for one connection only. Content-Length is set again at each hop.
_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect"),
    )
)


class MessageError(ValueError):
    """The bytes are not exactly one HTTP request or response."""


@dataclass(frozen=True)
class Request:
    """An HTTP request."""

    method: bytes
    target: bytes
    headers: tuple[Header, ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: tuple[Header, ...] = ()
    body: bytes = b""


def end_to_end(headers: Iterable[Header]) -> tuple[Header, ...]:
    """Return the headers to pass on to the other end.

    Left out are hop-by-hop headers, headers that ``Connection`` names, and ``Netspace-*``, which only the bridge sets.
    """
    found = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower() for name, value in found if name == b"connection" for token in value.split(b",")
    }  # fmt: skip
    return tuple(
        (name, value)
        for name, value in found
        if name not in _HOP_BY_HOP and name not in named and not name.startswith(b"netspace-")
    )


def header_value(text: str) -> bytes:
    """Return a sender's text as the value of a header, with ``?`` for characters that RFC 9110, 5.5 doesn't permit."""
    return bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in text.encode("ascii", "replace")).strip()


def dump_request(request: Request, host: bytes) -> bytes:
    """Return *request* as the body of a message.

    :param host: the name of the receiving environment, for the header ``Host``.
    """
    headers = [(name, value) for name, value in end_to_end(request.headers) if name != b"host"]
    start = h11.Request(
        method=request.method,
        target=request.target,
        headers=[(b"host", host), *headers, (b"content-length", b"%d" % len(request.body))],
    )
    return _dump(h11.Connection(h11.CLIENT), start, request.body)


def dump_response(response: Response) -> bytes:
    """Return *response* as the body of an answer."""
    length = (b"content-length", b"%d" % len(response.body))
    start = h11.Response(status_code=response.status, headers=[*end_to_end(response.headers), length])
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    while connection.their_state is not h11.DONE:
        connection.next_event()
    return _dump(connection, start, response.body)


def _dump(connection: h11.Connection, start: h11.Request | h11.Response, body: bytes) -> bytes:
    try:
        return wire.sent(connection, start, body)
    except h11.LocalProtocolError as err:
        raise MessageError(str(err)) from err


def load_request(raw: bytes) -> Request:
    """Return the HTTP request in the body of a message.

    :raises MessageError: the body is not exactly one request.
    """
    start, body = _load(h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS), raw)
    assert isinstance(start, h11.Request)
    return Request(start.method, start.target, end_to_end(start.headers), body)


def load_response(raw: bytes) -> Response:
    """Return the HTTP response in the body of an answer.

    :raises MessageError: the body is not exactly one response.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADERS)
    connection.send(h11.Request(method=b"POST", target=b"/", headers=[(b"host", b"x"), (b"content-length", b"0")]))
    connection.send(h11.EndOfMessage())
    start, body = _load(connection, raw)
    assert isinstance(start, h11.Response)
    return Response(start.status_code, end_to_end(start.headers), body)


def _load(connection: h11.Connection, raw: bytes) -> tuple[h11.Request | h11.Response, bytes]:
    start: h11.Request | h11.Response | None = None
    body = bytearray()
    try:
        connection.receive_data(raw)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request | h11.Response):
                start = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise MessageError(f"an unexpected part of HTTP: {type(event).__name__}")
    except h11.RemoteProtocolError as err:
        raise MessageError(str(err)) from err
    if start is None or connection.trailing_data[0]:
        raise MessageError("other data follows the message, or its first line is missing")
    if sum(len(name) + len(value) + 4 for name, value in start.headers) > HEADERS:
        raise MessageError(f"the headers have more than {HEADERS} bytes")
    return start, bytes(body)
