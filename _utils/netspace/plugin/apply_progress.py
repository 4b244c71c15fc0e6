"""Progress of an apply, for its operator: lines on the terminal of ``salt-call``, and events on Salt's bus.

There are two tags. ``netspace/apply/<minion>/doing`` has ``doing``, a text on what the apply is doing now.
``netspace/apply/<minion>/changed`` has ``changes``, a list of the changes made, each with ``kind``, ``name``,
``action`` and ``error``, which is empty after a success. An apply that changes nothing sends no event. If the bus
fails, or the terminal is closed, the apply still goes on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

from netspace.plan import Outcome
from netspace.plugin import arguments, tables
from netspace.text import printable

log = logging.getLogger(__name__)

TAG = "netspace/apply"
UNPROVED = "any minion can forge these lines; ask a host itself with netspace_fleet.status, whose answer is signed"
"""A notice for whoever watches events."""
TOGETHER = 200
"""The greatest number of changes in an event: 60 kB, of the 1 MiB that a bus carries by default."""
LONGEST = 200
"""The most characters of an error or a text in an event."""
BURST = 20
"""Events about the current activity that may be sent at once. Later ones are sent at most once a second.

Events about changes have no such limit.
"""

Send = Callable[[str, dict[str, Any]], object]
Say = Callable[[str], object]


class Hooks(TypedDict):
    """The arguments of a ``Host`` that let it report the progress of an apply, and read the sources of secrets."""

    progress: Callable[[str], None]
    applied: Callable[[Sequence[Outcome]], None]
    source: Callable[[str], object]
    minion: str


class Reading(TypedDict):
    """The arguments of a ``Host`` that let it read the sources of secrets."""

    source: Callable[[str], object]
    minion: str


class Telling:
    """Reporter of one apply.

    :param minion: the id of this host.
    :param say: shows a line to somebody who waits at a terminal; None: nobody waits.
    :param send: sends an event with a tag to the master's bus, and returns false if it can't; None: there is no master.
    :param clock: returns a monotonic time in seconds.
    """

    def __init__(
        self, minion: str, say: Say | None, send: Send | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tag = f"{TAG}/{minion}"
        self._say, self._send, self._clock = say, send, clock
        self._spare, self._last = float(BURST), clock()

    def doing(self, what: str) -> None:
        """Report what the apply does now, such as ``waiting for the broker to start (5 s)``."""
        log.info("netspace: %s", what)
        self._show(what)
        now = self._clock()
        self._spare, self._last = min(self._spare + now - self._last, BURST), now
        if self._spare >= 1:
            self._spare -= 1
            self._fire("doing", {"doing": what[:LONGEST]})

    def done(self, outcomes: Sequence[Outcome]) -> None:
        """Report the steps that were tried, with their outcomes."""
        failed = sum(bool(one.error) for one in outcomes)
        for kind in dict.fromkeys(one.step.kind for one in outcomes):
            number = sum(one.step.kind == kind and not one.error for one in outcomes)
            self._show(f"{kind}: {number} change{'' if number == 1 else 's'} made")
        if failed:
            self._show(f"{failed} failed")
        rows = [
            {
                "kind": one.step.kind,
                "name": one.step.name,
                "action": one.step.action,
                "error": one.error[:LONGEST],
            }
            for one in outcomes
        ]
        for first in range(0, len(rows), TOGETHER):
            self._fire("changed", {"changes": rows[first : first + TOGETHER]})

    def _show(self, what: str) -> None:
        if self._say is None:
            return
        try:
            for line in lines("netspace", what):
                self._say(line)
        except OSError as err:  # the terminal was closed
            self._say = None
            log.warning("netspace: progress is not shown any more: %s", err)

    def _fire(self, kind: str, data: dict[str, Any]) -> None:
        if self._send is None:
            return
        why = "the master didn't take it"
        try:
            # Salt answers false if it waited for the master in vain.
            sent = self._send(f"{self._tag}/{kind}", data) is not False
        except Exception as err:  # a failing bus must not stop the apply
            sent, why = False, str(err)
        if not sent:
            self._send = None  # each further event could wait for minutes
            log.warning("netspace: an event was not sent, and no more are sent by this state: %s", why)


def hooks(opts: Mapping[str, Any], salt: Mapping[str, Any]) -> Hooks:
    """Return the arguments with which a plugin makes its ``Host`` report progress, and read the sources of secrets.

    :param opts: the minion's configuration.
    :param salt: Salt's execution functions.
    """
    local = (opts.get("local") or opts.get("file_client") == "local") and not opts.get("use_master_when_local")
    waited_for = opts.get("__cli") == "salt-call" and sys.stderr is not None and sys.stderr.isatty()
    telling = Telling(
        arguments.minion(opts),
        (lambda line: print(line, file=sys.stderr, flush=True)) if waited_for else None,
        None if local else lambda tag, data: salt["event.fire_master"](data, tag),
    )
    return {
        "progress": telling.doing,
        "applied": telling.done,
        **reading(opts, salt),
    }


def reading(opts: Mapping[str, Any], salt: Mapping[str, Any]) -> Reading:
    """Return the arguments with which a plugin lets its ``Host`` read the sources of secrets."""
    return {"source": lambda uri: salt["sdb.get"](uri), "minion": arguments.minion(opts)}


def lines(who: str, what: str) -> Iterator[str]:
    """Yield the lines that show an activity on a terminal, each at most as wide as a terminal.

    :param who: the actor; may be untrusted.
    :param what: the activity; may be untrusted.
    """
    room = tables.WIDTH - len(who[:LONGEST]) - 2
    for number, part in enumerate(tables.wrap(printable(what[:LONGEST]), max(room, 20), 10)):
        yield f"{printable(who[:LONGEST])}{': ' if number == 0 else '  '}{part}"


def told(tag: str, event: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a terminal for an event on the master's bus; none for an event of another form.

    Any minion can forge these events with any tag and ``id``, because Salt passes on a minion's nested events
    unchanged. So callers may only show these events; nothing may act on them.

    :param event: the event as the master gives it. An event whose ``id`` differs from the minion in its tag has another
        form.
    """
    minion, data = event.get("id"), event.get("data")
    if isinstance(minion, str) and isinstance(data, Mapping) and tag == f"{TAG}/{minion}/doing":
        yield from lines(minion, str(data.get("doing", "")))
    for row in _changes(tag, event):
        step = f"{row.get('action')} {row.get('kind')} {row.get('name')}"
        yield from lines(str(minion), f"FAILED to {step}: {row['error']}" if row.get("error") else step)


def verdicts(tag: str, event: Mapping[str, Any]) -> list[bool]:
    """Return, for each change in an event, whether it succeeded."""
    return [not row.get("error") for row in _changes(tag, event)]


def _changes(tag: str, event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    minion, data = event.get("id"), event.get("data")
    if not isinstance(minion, str) or not isinstance(data, Mapping) or tag != f"{TAG}/{minion}/changed":
        return []
    rows = data.get("changes")
    return [row for row in rows[:TOGETHER] if isinstance(row, Mapping)] if isinstance(rows, list) else []
