"""Declared limits of a link's messages (size, content type, rate), checked at both ends.

The broker can't enforce these limits. The receiver checks them too, because a hostile sender may ignore them.
"""

from __future__ import annotations

import math

from netspace_client.card import Narrowed
from netspace_client.errors import Refused

BURST = 1.0
"""Seconds; the messages that the rate permits in this time may come at once."""


def check(narrowed: Narrowed, body: bytes, content_type: str | None) -> None:
    """Check a message's size and type against the limits declared for its link.

    :raises Refused: the message is too large or of another type.
    """
    if narrowed.size is not None and len(body) > narrowed.size:
        raise Refused(f"{len(body)} bytes; the link permits {narrowed.size} at most")
    kind = (content_type or "").partition(";")[0].strip().lower()
    if narrowed.content_type is not None and kind != narrowed.content_type:
        raise Refused(f"the content type is {(content_type or '')[:99]!r}; the link permits {narrowed.content_type}")


class Pace:
    """Rate limit of a link, as a bucket with room for the messages of ``BURST`` seconds. Pure: callers pass the time.

    :param rate: messages per second. After a pause of ``1 / rate`` seconds, the next message is always permitted.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._each = 1 / rate
        self._room = max(0.0, BURST - self._each)
        self._filled = -math.inf

    def wait(self, now: float) -> float:
        """Return the seconds until the next message is permitted."""
        return max(0.0, self._filled - self._room - now)

    def take(self, now: float) -> None:
        """Count a message that is sent or taken at the time *now*."""
        self._filled = max(self._filled, now) + self._each


class Paces:
    """The rate limits of links, by exchange."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def of(self, exchange: str, narrowed: Narrowed) -> Pace | None:
        """Return the rate limit of a link; None: the link has no rate limit."""
        if narrowed.rate is None:
            self._paces.pop(exchange, None)
            return None
        pace = self._paces.get(exchange)
        if pace is None or pace.rate != narrowed.rate:
            pace = self._paces[exchange] = Pace(narrowed.rate)
        return pace

    def forget(self, named: set[str]) -> None:
        """Delete the rate limits of all exchanges except *named*."""
        for exchange in self._paces.keys() - named:
            del self._paces[exchange]
