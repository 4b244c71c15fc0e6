"""Machine of a rollout: takes one step after the other, and writes each into the journal.

It may be killed at any moment. The next run continues from the journal. A host that was found good isn't called again.
A host whose answer isn't in the journal is called again, because applying a plan a second time changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from netspace.fleet.hosts import Hosts, Outcome
from netspace.fleet.rollout import records
from netspace.fleet.rollout.journal import Journal
from netspace.fleet.rollout.state import Action, Rollout, Status

OPERATOR = "the operator stopped it"
SHOWN = 5
"""The most hosts of a batch that are named."""
LOOK = 1.0
"""Seconds between two checks for an operator's request, while changed hosts settle."""
AGAIN = 3.0
"""Seconds between two checks of hosts that aren't good yet."""


class RolloutHosts(Hosts, Protocol):
    """Calls to hosts that a rollout prepares, changes and judges."""

    def prepare(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Attest each host, and let it fetch the images of its plan. The host's programs keep running unchanged."""


class Event(NamedTuple):
    """A message to operators about one host, or about the whole rollout.

    :param host: the host's name; empty: the whole rollout.
    :param what: a few words, such as ``applied``.
    :param reason: why something failed; else empty.
    """

    host: str
    what: str
    reason: str = ""


class Edges(NamedTuple):
    """The machine's connections to everything but the journal.

    :param hosts: the calls to the hosts.
    :param tell: shows an event to operators.
    :param wait: waits for some seconds.
    :param clock: returns seconds since 1970.
    """

    hosts: RolloutHosts
    tell: Callable[[Event], None] = lambda event: None
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time


def run(journal: Journal, rollout: Rollout, edges: Edges) -> None:
    """Run a rollout until it has ended or is paused; the caller holds the journal's lock.

    :raises NetspaceError: no host can be called, for example because the master is down. The rollout can be resumed.
    """
    machine = _Machine(journal, rollout, edges)
    while rollout.ended is None and not rollout.paused:
        machine.step()


class _Machine:
    def __init__(self, journal: Journal, rollout: Rollout, edges: Edges) -> None:
        self._journal, self._rollout, self._edges = journal, rollout, edges

    def step(self) -> None:
        """Take the next step, or carry out an operator's request instead."""
        rollout = self._rollout
        step = rollout.next()
        asked = self._journal.asked()
        if asked is not None and rollout.stopping is not None:
            self._journal.answered()
        elif asked in ("stop", "stop-and-take-back"):
            self._write(self._stopping(asked == "stop-and-take-back"))
            self._journal.answered()
            return
        elif asked == "pause" and not rollout.those(Status.SENT, Status.APPLIED):  # else once the batch is judged
            self._write(records.Paused())
            self._journal.answered()
            self._edges.tell(Event("", "paused"))
            return
        match step.action:
            case Action.PREPARE:
                self._edges.tell(Event("", f"begins: {len(step.hosts)} hosts"))
                told = self._edges.hosts.prepare(step.hosts)
                self._outcomes(records.Prepared(outcomes=records.outcomes(step.hosts, told)), "prepared")
            case Action.APPLY:
                if any(rollout.hosts[host] is Status.WAITING for host in step.hosts):
                    self._write(records.Sent(hosts=step.hosts))
                self._edges.tell(Event("", self._batch(step.hosts)))
                told = self._edges.hosts.apply(step.hosts)
                self._outcomes(records.Applied(outcomes=records.outcomes(step.hosts, told)), "applied")
            case Action.JUDGE:
                if self._waited(rollout.started.pace.settle):
                    verdict = self._judged(step.hosts)
                    if verdict is not None:
                        self._outcomes(records.Judged(outcomes=records.outcomes(step.hosts, verdict)), "good")
            case Action.STOP:
                self._write(records.Stopping(why=step.why, hosts=step.hosts))
                self._edges.tell(Event("", f"stops, {len(step.hosts)} hosts are taken back", step.why))
            case Action.TAKE_BACK:
                told = self._edges.hosts.take_back(step.hosts)
                self._outcomes(records.TakenBack(outcomes=records.outcomes(step.hosts, told)), "taken back")
            case Action.CHECK:
                self._waited(rollout.started.pace.settle)
                verdict = self._judged(step.hosts)
                if verdict is not None:
                    self._outcomes(records.Checked(outcomes=records.outcomes(step.hosts, verdict)), "good as before")
            case Action.END:
                self._write(records.Ended(at=self._edges.clock()))
                counts = ", ".join(f"{count} {what}" for what, count in rollout.counts().items())
                self._edges.tell(Event("", f"has ended: {counts}", rollout.stopping or ""))

    def _batch(self, hosts: Sequence[str]) -> str:
        named = ", ".join(hosts[:SHOWN]) + (f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else "")
        good = len(self._rollout.those(Status.GOOD))
        return f"{named} apply ({good} of {len(self._rollout.hosts)} hosts are good)"

    def _stopping(self, take_back: bool) -> records.Stopping:
        step = self._rollout.stop(OPERATOR, take_back=take_back)
        self._edges.tell(Event("", f"stops, {len(step.hosts)} hosts are taken back", step.why))
        return records.Stopping(why=step.why, hosts=step.hosts)

    def _judged(self, hosts: Sequence[str]) -> Mapping[str, Outcome] | None:
        """Return the gate's outcome for each host; None if an operator asks to stop meanwhile.

        Hosts that aren't good are checked again until the deadline, because an environment may need some time to start.
        """
        pace = self._rollout.started.pace
        if not pace.gate:
            return dict.fromkeys(hosts, Outcome(True))
        found: dict[str, Outcome] = {}
        left = pace.deadline
        while True:
            began = time.monotonic()
            found |= self._edges.hosts.healthy([host for host in hosts if host not in found or not found[host].ok])
            if (took := time.monotonic() - began) > AGAIN:  # hosts that answer slowly count against the deadline
                left -= took
            if left <= 0 or all(host in found and found[host].ok for host in hosts):
                return found
            if not self._waited(min(left, AGAIN)):
                return None
            left -= AGAIN

    def _waited(self, seconds: float) -> bool:
        """Wait; return False if the wait ended early because an operator asks to stop.

        A request to stop doesn't count if the rollout is already stopping.
        """
        while seconds > 0:
            if self._rollout.stopping is None and self._journal.asked() in ("stop", "stop-and-take-back"):
                return False
            self._edges.wait(min(seconds, LOOK))
            seconds -= LOOK
        return True

    def _outcomes(
        self,
        record: records.Prepared | records.Applied | records.Judged | records.TakenBack | records.Checked,
        good: str,
    ) -> None:
        self._write(record)
        for host, reason in record.outcomes.items():
            self._edges.tell(Event(host, "FAILED" if reason else good, reason))

    def _write(self, record: records.Entry) -> None:
        """Write a record into the journal, and only then change the state by it."""
        self._journal.append(record)
        self._rollout.take(record)
