"""Addresses in proc(5)'s tables of sockets, and sockets of this process in these tables."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.naming import named

from netspace import sockets


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_address_is_read_as_the_kernel_writes_it(address: object) -> None:
    packed = address.packed  # type: ignore[attr-defined]
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    written = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    mapped = getattr(address, "ipv4_mapped", None)
    expected = mapped or address
    assert sockets.decoded(written) == ("" if expected.is_unspecified else str(expected))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "kind", "address", "table", "told"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", "tcp", "127.0.0.1"),
        (socket.AF_INET, socket.SOCK_DGRAM, "", "udp", ""),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::1", "udp6", "::1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.1", "tcp6", "127.0.0.1"),
    ],
)
def test_a_socket_that_waits_is_found_with_its_program(
    family: int, kind: int, address: str, table: str, told: str
) -> None:
    with socket.socket(family, kind) as one:
        one.bind((address, 0))
        port = one.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            assert not list(sockets.listeners(table, {port})), "it doesn't listen yet"
            one.listen()
        found = list(sockets.listeners(table, {port}))
        assert [(entry.address, entry.port, entry.protocol) for entry in found] == [(told, port, table[:3])]
        with named(b"\xff\xfe"):
            assert sockets.holder(found).pid == os.getpid()
        if kind == socket.SOCK_DGRAM and family == socket.AF_INET:
            one.connect(("127.0.0.1", port))
            assert not list(sockets.listeners(table, {port})), "it takes packets from one alone"


def test_holder_that_closes_another_descriptor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder of a port is found although it closes a descriptor meanwhile, as a broker does all the time."""
    listed = os.listdir

    def with_gone(path: str) -> list[str]:
        return ["99999", *listed(path)] if path == f"/proc/{os.getpid()}/fd" else listed(path)

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        found = list(sockets.listeners("tcp", {one.getsockname()[1]}))
        monkeypatch.setattr(os, "listdir", with_gone)
        assert sockets.holder(found).pid == os.getpid()
