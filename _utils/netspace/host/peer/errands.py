"""Requests that the peer has passed to the keeper of children, and that wait for an answer."""

from __future__ import annotations

import collections
import contextlib
import socket
import time
from collections.abc import Iterator
from types import ModuleType

import msgspec

from netspace.host.peer import requests
from netspace.host.peer.requests import Request

EACH, ALL = 8, 1024
"""The most requests of one environment, and of all, that wait for the keeper."""
LARGEST = 256 * 1024
PATIENCE = 10.0
"""Seconds for which a request waits for a keeper that doesn't listen, such as one that an apply just started."""
BUSY = "too many requests about children and delegations wait; try again later"
ABSENT = "the host's keeper of children doesn't run; try again, and ask first which children or delegations there are"


class Way(msgspec.Struct, frozen=True):
    """The address to which an answer is sent.

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
    at: float
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
        self._unsent: collections.deque[tuple[int, bytes, float]] = collections.deque()
        self._last = 0

    @property
    def unsent(self) -> bool:
        """Whether a request waits until the keeper listens; :meth:`done` tries again."""
        return bool(self._unsent)

    def begin(self, way: Way, name: str, request: Request) -> str:
        """Hand a request to the keeper; return why that isn't possible now, empty if it is.

        :param name: the environment that asks.
        """
        if len(self._waiting) >= ALL or sum(one[1] == name for one in self._waiting.values()) >= EACH:
            return BUSY
        self._last += 1
        arguments = msgspec.Raw(bytes(request.arguments))
        message = msgspec.json.encode(
            _Ask(self._last, name, request.verb, time.clock_gettime(time.CLOCK_BOOTTIME), arguments)
        )
        self._waiting[self._last] = (way, name, request.verb)
        self._unsent.append((self._last, message, time.monotonic() + PATIENCE))
        self._send()
        return ""

    def _send(self) -> None:
        """Send waiting requests, as many as the keeper accepts without blocking."""
        with contextlib.suppress(
            OSError
        ):  # it is just being started, or busy; done() finds that a connection is broken
            while self._unsent:
                if self.keeper is None:
                    self.keeper = self._connected()
                self.keeper.send(self._unsent[0][1])
                self._unsent.popleft()

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
        """Yield the answers that have come: the address to answer to, the asker, the body, and the text for the log.

        If the keeper has ended, the requests that it received are refused. Later requests wait for a new keeper, and
        are refused after :data:`PATIENCE`.
        """
        while self._unsent and self._unsent[0][2] < time.monotonic():
            yield self._refused(self._unsent.popleft()[0])
        self._send()
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
                later = {number for number, *_ in self._unsent}
                for number in self._waiting.keys() - later:
                    yield self._refused(number)
                return
            told = msgspec.json.decode(raw, type=_Told)
            way, name, verb = self._waiting.pop(told.id)
            if bytes(told.answer) == b"null":
                yield way, name, requests.refusal(told.code, told.text), f"{verb} {told.code}"
            else:
                content = msgspec.json.decode(told.answer, type=verbs[verb].Answer)
                yield way, name, requests.answered(verb, content), verb

    def _refused(self, number: int) -> tuple[Way, str, bytes, str]:
        way, name, verb = self._waiting.pop(number)
        return way, name, requests.refusal("not-available", ABSENT), f"{verb} not-available"
