"""Limits of a link's messages in size, type and number in a second, checked at both ends.

The broker can't hold a sender to them. The receiver does, so that hostile senders are bound as well.
"""

from __future__ import annotations

import math

from netspace_client.card import Narrowed
from netspace_client.errors import Refused

BURST = 1.0
"""Seconds whose messages may come at once."""


def check(narrowed: Narrowed, body: bytes, content_type: str | None) -> None:
    """Check that a message is of the size and type that are declared for its link.

    :raises Refused: it isn't.
    """
    if narrowed.size is not None and len(body) > narrowed.size:
        raise Refused(f"{len(body)} bytes; {narrowed.size} are declared at most")
    kind = (content_type or "").partition(";")[0].strip().lower()
    if narrowed.content_type is not None and kind != narrowed.content_type:
        raise Refused(f"it is {(content_type or 'of no type')[:99]!r}; {narrowed.content_type} is declared")


class Pace:
    """The rate of messages over a link. Pure: it is told the time.

    :param rate: messages in a second; one may always come when none came for as long as one takes.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._each = 1 / rate
        self._room = max(0.0, BURST - self._each)
        self._filled = -math.inf

    def wait(self, now: float) -> float:
        """Return the seconds until another message may come."""
        return max(0.0, self._filled - self._room - now)

    def take(self, now: float) -> None:
        """Count another message."""
        self._filled = max(self._filled, now) + self._each


class Paces:
    """The paces of some links, by the exchange that they lead through."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def of(self, exchange: str, narrowed: Narrowed) -> Pace | None:
        """Return the pace of a link; None: its rate isn't limited."""
        if narrowed.rate is None:
            self._paces.pop(exchange, None)
            return None
        pace = self._paces.get(exchange)
        if pace is None or pace.rate != narrowed.rate:
            pace = self._paces[exchange] = Pace(narrowed.rate)
        return pace

    def forget(self, named: set[str]) -> None:
        """Forget the paces of all exchanges but *named*."""
        for exchange in self._paces.keys() - named:
            del self._paces[exchange]
