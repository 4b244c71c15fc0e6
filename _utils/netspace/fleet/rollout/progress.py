"""Progress of a rollout, for operators: each event as a line of text, and as an event on Salt's bus. Pure.

Reasons are the journal's: cut to a length, and without characters that could harm a terminal. An event contains nothing
of a declaration.
"""

from __future__ import annotations

from typing import Any

from netspace.fleet.rollout.machine import Event
from netspace.fleet.rollout.records import MAX_REASON

TAG = "netspace/fleet/rollout"


def line(event: Event) -> str:
    """Return an event as a line of a terminal."""
    reason = f": {event.reason[:MAX_REASON]}" if event.reason else ""
    return f"{event.host or 'rollout'}: {event.what}{reason}"


def message(plan: str, event: Event) -> tuple[str, dict[str, Any]]:
    """Return the tag and the data of an event on Salt's bus.

    The tag is ``netspace/fleet/rollout/<plan>``, with ``/<host>`` if the event is about one host.
    """
    tag = "/".join(part for part in (TAG, plan, event.host) if part)
    data = {"plan": plan, "host": event.host, "what": event.what, "reason": event.reason[:MAX_REASON]}
    return tag, {**data, "ok": not event.reason}
