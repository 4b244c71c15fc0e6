"""Requests that the peer has handed to the keeper of children, until their answers come."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import msgspec

from netspace.host.peer import requests
from netspace.host.peer.requests import Request

EACH, ALL = 8, 1024
"""The most requests of one environment, and of all, that wait for the keeper."""
LARGEST = 256 * 1024
BUSY = "too many requests about children wait; try again later"
ABSENT = "the host's keeper of children doesn't run; try again, and ask first which children there are"


@dataclass(frozen=True)
class Way:
    """The way of an answer.

    :param exchange: the exchange through which the request came.
    :param key: the routing key of the answer.
    :param about: the answer's correlation id.
    """

    exchange: str
    key: str
    about: str


class _Ask(msgspec.Struct, frozen=True):
    id: int
    asker: str
    verb: str
    arguments: msgspec.Raw


class _Told(msgspec.Struct, frozen=True):
    id: int
    answer: msgspec.Raw
    code: requests.Code
    text: str


class Errands:
    """The requests that wait, and the connection to the keeper.

    :param place: the keeper's socket file.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self.keeper: socket.socket | None = None
        self._waiting: dict[int, tuple[Way, str, str]] = {}
        self._last = 0

    def begin(self, way: Way, name: str, request: Request) -> str:
        """Hand a request to the keeper; return why that isn't possible now, empty if it is.

        :param name: the environment that asks.
        """
        if len(self._waiting) >= ALL or sum(one[1] == name for one in self._waiting.values()) >= EACH:
            return BUSY
        arguments = msgspec.Raw(bytes(request.arguments))
        try:
            if self.keeper is None:
                self.keeper = self._connected()
            self.keeper.send(msgspec.json.encode(_Ask(self._last + 1, name, request.verb, arguments)))
        except BlockingIOError:
            return BUSY
        except OSError:  # done() finds that a connection is broken
            return ABSENT
        self._last += 1
        self._waiting[self._last] = (way, name, request.verb)
        return ""

    def _connected(self) -> socket.socket:
        way = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            way.setblocking(False)
            way.connect(self._place)
        except OSError:
            way.close()
            raise
        return way

    def done(self, verbs: dict[str, ModuleType]) -> Iterator[tuple[Way, str, bytes, str]]:
        """Yield the answers that have come: way, asker, body, and the text for the log.

        If the keeper has ended, all that wait are refused.
        """
        while self.keeper is not None:
            try:
                raw = self.keeper.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                raw = b""
            if not raw:
                self.keeper.close()
                self.keeper = None
                lost, self._waiting = self._waiting, {}
                for way, name, verb in lost.values():
                    yield way, name, requests.refusal("not-available", ABSENT), f"{verb} not-available"
                return
            told = msgspec.json.decode(raw, type=_Told)
            way, name, verb = self._waiting.pop(told.id)
            if bytes(told.answer) == b"null":
                yield way, name, requests.refusal(told.code, told.text), f"{verb} {told.code}"
            else:
                content = msgspec.json.decode(told.answer, type=verbs[verb].Answer)
                yield way, name, requests.answered(verb, content), verb
