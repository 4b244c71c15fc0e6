"""Dead letters: what could not be kept in a mailbox, seen, and sent again by the way that it came.

A dead letter's history (``x-first-death-...``) is the broker's own word: whatever a sender wrote there itself is
overwritten when its message dies. So the exchange it names is the one that the message was sent to, and
a letter that is sent again goes through that very link, if it still is declared, and to nobody else.

The broker itself moves a letter that is looked at for that from ``dead`` to ``dead-again``, and back where it can't be
sent. One that was sent leaves ``dead-again`` after the mailbox has confirmed it: a run that is killed
leaves a letter in either, and one may be sent twice at worst, with the same ``message_id``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import names, reach
from netspace.link.management import Management, RefusedError
from netspace.link.record import read

MOST = 1000
LOOK, MOVE, REMOVE = "ack_requeue_true", "reject_requeue_false", "ack_requeue_false"
SHOWN = 4096
"""Bytes of a payload that are shown."""
_ITS_OWN = (
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
    "CC",
    "BCC",
)  # headers, beside x-first-death-... and x-last-death-...
ARRIVAL_SECONDS = 30.0


@dataclass(frozen=True)
class Letter:
    """One dead letter.

    :param link: ``<from>.<to>``; empty where that can't be told.
    :param died: seconds since 1970.
    """

    link: str
    reason: str
    died: int
    size: int
    properties: Mapping[str, Any] = field(repr=False)
    payload: str = field(default="", repr=False)

    def shown(self, payload: bool) -> dict[str, Any]:
        """As an operator sees it; what was written only where it is asked for."""
        about: dict[str, Any] = {"link": self.link, "reason": self.reason, "died": self.died, "bytes": self.size}
        for key in ("message_id", "content_type"):
            if key in self.properties:
                about[key] = str(self.properties[key])[:256]
        if payload:
            raw = base64.b64decode(self.payload)[:SHOWN]
            about["payload"] = raw.decode(errors="backslashreplace")
        return about


class Letters:
    """The dead letters of one instance's broker."""

    def __init__(self, layout: Layout) -> None:
        record = read(layout)
        if record.broker is None or not record.links:
            raise NetspaceError("there are no links, and so no dead letters")
        self.layout = layout
        self.record = record
        self.broker = record.broker
        self.vhost = reach.vhost(layout, record.broker)
        self.called = names.used(layout, record.broker)
        # Those with a former name are older.
        self.queues = [*(one.queue for one in record.former if not one.environment), self.called.dead]

    def count(self, limit: int = 20, payload: bool = False) -> dict[str, Any]:
        """``count``: how many there are; ``letters``: *limit* of them."""
        _within(limit)
        total = 0
        found: list[dict[str, Any]] = []
        with reach.management(self.layout, self.broker) as api:
            for queue in (*self.queues, self.called.again):
                got = _get(api, self.vhost, queue, max(1, limit - len(found)), truncate=SHOWN if payload else 1)
                total += len(got) + (int(got[-1]["message_count"]) if got else 0)
                found += [letter(one).shown(payload) for one in got][: limit - len(found)]
        return {"count": total, "letters": found}

    def redeliver(self, limit: int = 100, link: str | None = None, test: bool = False) -> dict[str, Any]:
        """Send *limit* letters again; with *link*, those of it among them.

        :param test: only say what would be done.
        :return: ``sent``: a number per link; ``kept``: per link a number and why.
        """
        _within(limit)
        tally = _Tally()
        with reach.management(self.layout, self.broker) as api:
            if not test:
                # What a killed run left: it may have been sent, or not.
                _get(api, self.vhost, self.called.again, MOST, truncate=1, mode=MOVE)
            for queue in self.queues:
                waiting = _get(api, self.vhost, queue, limit, truncate=1)
                limit -= len(waiting)
                for one in waiting if test else ():
                    found = letter(one)
                    tally.add(found, self._why_not(found, link))
                for _ in () if test else waiting:
                    for head in _get(api, self.vhost, queue, 1, mode=MOVE):
                        found = letter(head)
                        why = self._why_not(found, link) or self._send(api, found)
                        self._settle(api, found, REMOVE if not why else MOVE)
                        tally.add(found, why)
                if limit < 1:
                    break
        return {"sent": tally.sent, "kept": tally.kept}

    def _why_not(self, found: Letter, link: str | None) -> str:
        if not found.link:
            return "it isn't known which link it came by"
        if link is not None and found.link != link:
            return "not asked for"
        return "" if found.link in self.record.links else "the link is revoked"

    def _send(self, api: Management, found: Letter) -> str:
        """Publish a letter through its link, confirmed; return why that is refused."""
        properties = {key: value for key, value in found.properties.items() if key not in ("user_id", "headers")}
        properties["headers"] = {
            key: value
            for key, value in (found.properties.get("headers") or {}).items()
            if key not in _ITS_OWN and not key.startswith(("x-first-death-", "x-last-death-"))
        }
        body = {"routing_key": "", "payload": found.payload, "payload_encoding": "base64", "properties": properties}
        exchange = self.called.exchange(self.record.links[found.link])
        try:
            answer = api.post("exchanges", self.vhost, exchange, "publish", body=body, timeout=30.0)
        except RefusedError as err:
            return "the mailbox is full" if "queue limits" in str(err) else str(err)
        if answer is None:
            return "its link isn't on the broker: apply again"
        return "" if answer.get("routed") else "its link leads nowhere: apply again"

    def _settle(self, api: Management, found: Letter, mode: str) -> None:
        """Take the letter that was just moved out of ``dead-again``: for good, or back to the others."""
        patience = time.monotonic() + ARRIVAL_SECONDS
        while not (got := _get(api, self.vhost, self.called.again, 1, mode=mode)):
            if time.monotonic() > patience:
                raise NetspaceError("a dead letter doesn't arrive where it is sent from; look at the broker's log")
            time.sleep(0.01)
        if got[0].get("payload") != found.payload:
            raise NetspaceError("somebody else moves dead letters at the same time: look before doing it again")


@dataclass
class _Tally:
    sent: dict[str, int] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, found: Letter, why: str) -> None:
        if why:
            self.kept.setdefault(found.link or "unknown", {"number": 0, "why": why})["number"] += 1
        else:
            self.sent[found.link] = self.sent.get(found.link, 0) + 1


def letter(got: Mapping[str, Any]) -> Letter:
    """What the broker says of a dead letter, of which nothing is believed but what it wrote itself."""
    properties = dict(got.get("properties") or {})
    headers = properties.get("headers") or {}
    ends = names.environments_of(str(headers.get("x-first-death-exchange")), "link")
    queue, reason = headers.get("x-first-death-queue"), headers.get("x-first-death-reason")
    times = [one.get("time") for one in headers.get("x-death") or () if one.get("queue") == queue]
    return Letter(
        link=".".join(ends or ()),
        reason=str(reason or "unknown"),
        died=times[0] if times and isinstance(times[0], int) else 0,
        size=int(got.get("payload_bytes") or 0),
        properties=properties,
        payload=got.get("payload") or "",
    )


def _get(
    api: Management, vhost: str, queue: str, number: int, truncate: int = 0, mode: str = LOOK
) -> list[dict[str, Any]]:
    body: dict[str, Any] = {"count": number, "ackmode": mode, "encoding": "base64"}
    if truncate:
        body["truncate"] = truncate
    return api.post("queues", vhost, queue, "get", body=body, timeout=60.0) or []


def _within(limit: int) -> None:
    if not 1 <= limit <= MOST:
        raise NetspaceError(f"limit: {limit}: expected 1 to {MOST}")
