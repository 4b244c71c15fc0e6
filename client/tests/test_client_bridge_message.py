"""HTTP in messages: converting to messages and back changes nothing, and senders can't insert requests or headers."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace_client.bridge import message
from netspace_client.bridge.message import MessageError, Request, Response

TOKEN = st.from_regex(rb"\A[a-z][a-z0-9-]{0,20}\Z").filter(lambda name: not name.startswith(b"netspace-"))
VALUE = st.from_regex(rb"\A[!-~]{0,40}\Z")
# What the bridge itself says, and what changes the framing of the messages that carry it.
OWN = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect"}
OWN |= {b"host", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"}
HEADERS = st.lists(st.tuples(TOKEN.filter(lambda name: name not in OWN), VALUE), max_size=8).map(tuple)


@given(
    st.sampled_from((b"GET", b"POST", b"PUT", b"DELETE", b"PATCH")),
    st.from_regex(rb"\A/[!-~]{0,40}\Z"),
    HEADERS,
    st.binary(max_size=300),
)
def test_request_comes_out_as_it_went_in(method: bytes, target: bytes, headers: tuple, body: bytes) -> None:
    raw = message.dump_request(Request(method, target, headers, body), b"orders")
    found = message.load_request(raw)
    assert (found.method, found.target, found.body) == (method, target, body)
    assert found.headers == ((b"host", b"orders"), *headers)


@given(st.sampled_from((200, 201, 301, 400, 404, 500, 503)), HEADERS, st.binary(max_size=300))
def test_response_comes_out_as_it_went_in(status: int, headers: tuple, body: bytes) -> None:
    found = message.load_response(message.dump_response(Response(status, headers, body)))
    assert (found.status, found.headers, found.body) == (status, headers, body)


@given(st.binary(max_size=400))
def test_hostile_bytes_raise_one_error(raw: bytes) -> None:
    for load in (message.load_request, message.load_response):
        try:
            load(raw)
        except MessageError:
            continue


@given(st.binary(max_size=60), st.integers(0, 200))
def test_changed_request_is_whole_or_refused(noise: bytes, at: int) -> None:
    raw = message.dump_request(Request(b"POST", b"/a", ((b"x", b"1"),), b"body"), b"orders")
    try:
        found = message.load_request(raw[:at] + noise + raw[at:])
    except MessageError:
        return
    assert isinstance(found, Request)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /second HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nbody!",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nshort",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70000 + b"\r\n\r\n",
        b"",
    ],
    ids=["two requests", "two lengths", "cut short", "a long header", "nothing"],
)
def test_request_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(MessageError):
        message.load_request(raw)


def test_sender_cannot_say_what_the_bridge_says() -> None:
    claimed = (
        (b"Netspace-Sender", b"orders"),
        (b"Connection", b"close, x-secret"),
        (b"X-Secret", b"1"),
        (b"X-Kept", b"2"),
    )
    assert message.end_to_end(claimed) == ((b"x-kept", b"2"),)
    raw = (
        b"POST /a HTTP/1.1\r\nhost: orders\r\nNetspace-Sender: root\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4\r\nbody\r\n0\r\n\r\n"
    )
    found = message.load_request(raw)
    assert (found.headers, found.body) == (((b"host", b"orders"),), b"body")


def test_header_with_a_line_end_is_refused() -> None:
    with pytest.raises((MessageError, h11.LocalProtocolError)):
        message.dump_request(Request(b"GET", b"/", ((b"x", b"1\r\ny: 2"),)), b"orders")
