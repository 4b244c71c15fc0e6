"""State of a rollout, computed from the records of its journal, and the step that comes next. Pure.

A host is *bad* from the moment when the change is sent to it, or when it is to be taken back, until the gate finds it
good. A batch is never larger than the number of hosts that may still become bad. So at most ``max_fail`` hosts are bad,
whenever the rollout ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from netspace.fleet.rollout import records
from netspace.fleet.rollout.records import Started


class Status(Enum):
    """The state of one host within a rollout."""

    WAITING = "waiting"
    REFUSED = "refused"
    """It could not be prepared. Nothing was changed."""
    SENT = "sent"
    APPLIED = "applied"
    GOOD = "good"
    FAILED = "failed"
    RETURNING = "being taken back"
    RETURNED = "taken back, not judged"
    BACK = "taken back"
    STUCK = "taken back, and bad"


BAD = frozenset({Status.SENT, Status.APPLIED, Status.FAILED, Status.RETURNING, Status.RETURNED, Status.STUCK})


class Action(Enum):
    """The kind of a rollout's step."""

    PREPARE = "prepare"
    APPLY = "apply"
    JUDGE = "judge"
    STOP = "stop"
    TAKE_BACK = "take back"
    CHECK = "check"
    END = "end"


class Step(NamedTuple):
    """A step of a rollout.

    :param hosts: the hosts that it concerns.
    :param why: the reason for a stop.
    """

    action: Action
    hosts: tuple[str, ...] = ()
    why: str = ""


class Contradiction(ValueError):
    """Error: a record can't follow the records before it."""


class Rollout:
    """One rollout: the state of each of its hosts, and of the whole rollout."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.hosts: dict[str, Status] = {}
        self.reasons: dict[str, str] = {}
        self.paused = self.prepared = False
        self.stopping: str | None = None
        self.ended: float | None = None
        self.last: tuple[str, ...] = ()
        self._bad: set[str] = set()
        self._canaries = {host for batch in started.batches if batch.canary for host in batch.hosts}
        self._at = 0
        for batch in started.batches:
            for host in batch.hosts:
                if host in self.hosts:
                    raise Contradiction(f"{host:.60} is in two batches")
                self.hosts[host] = Status.WAITING
        if len(self.hosts) > records.MAX_HOSTS:
            raise Contradiction(f"more than {records.MAX_HOSTS} hosts")
        if (
            min(started.pace.max_fail, started.pace.step) < 1
            or not min(started.pace.settle, started.pace.deadline) >= 0
        ):
            raise Contradiction("a value of its pace is too low")

    @property
    def bad(self) -> frozenset[str]:
        """The hosts that were sent a change and are not known to be good since."""
        return frozenset(self._bad)

    @property
    def budget(self) -> int:
        """The number of hosts that may still become bad."""
        return self.started.pace.max_fail - len(self._bad)

    def take(self, record: records.Entry) -> None:
        """Change the state by a record of the journal.

        :raises Contradiction: the record can't follow the records before it.
        """
        if self.ended is not None:
            raise Contradiction("a record after the end")
        match record:
            case Started():
                raise Contradiction("a second start")
            case records.Prepared(outcomes=told):
                self._move(told, {Status.WAITING}, Status.WAITING, Status.REFUSED)
                self.prepared = True
            case records.Sent(hosts=hosts):
                self._move(dict.fromkeys(hosts, ""), {Status.WAITING}, Status.SENT, Status.SENT)
                self.last = hosts
            case records.Applied(outcomes=told):
                self._move(told, {Status.SENT}, Status.APPLIED, Status.FAILED)
            case records.Judged(outcomes=told):
                self._move(told, {Status.APPLIED}, Status.GOOD, Status.FAILED)
            case records.Stopping(why=why, hosts=hosts):
                if self.stopping is not None:
                    raise Contradiction("a second stop")
                changed = BAD | {Status.GOOD}
                self._move(dict.fromkeys(hosts, ""), changed, Status.RETURNING, Status.RETURNING)
                self.stopping = why
            case records.TakenBack(outcomes=told):
                self._move(told, {Status.RETURNING}, Status.RETURNED, Status.STUCK)
            case records.Checked(outcomes=told):
                self._move(told, {Status.RETURNED}, Status.BACK, Status.STUCK)
            case records.Paused():
                self.paused = True
            case records.Resumed():
                self.paused = False
            case records.Ended(at=at):
                self.ended = at

    def _move(self, told: Mapping[str, str], allowed: Collection[Status | None], good: Status, bad: Status) -> None:
        for host, reason in told.items():
            if (status := self.hosts.get(host)) is None or status not in allowed:
                raise Contradiction(f"{host:.60} is {'unknown' if status is None else status.value}")
            self.hosts[host] = now = bad if reason else good
            if reason:
                self.reasons[host] = reason
            (self._bad.add if now in BAD else self._bad.discard)(host)

    def next(self) -> Step:
        """Return the step that comes next in the present state."""
        if self.stopping is not None:
            if hosts := self.those(Status.RETURNING):
                return Step(Action.TAKE_BACK, hosts)
            if hosts := self.those(Status.RETURNED):
                return Step(Action.CHECK, hosts)
            return Step(Action.END)
        if hosts := self.those(Status.SENT):  # the master was killed meanwhile: ask again
            return Step(Action.APPLY, hosts)
        if hosts := self.those(Status.APPLIED):
            return Step(Action.JUDGE, hosts)
        if not self.prepared:
            return Step(Action.PREPARE, tuple(self.hosts))
        if why := self._too_much():
            return self.stop(why, take_back=True)
        hosts = self._batch()
        return Step(Action.APPLY, hosts) if hosts else Step(Action.END)

    def stop(self, why: str, *, take_back: bool) -> Step:
        """Return the step that stops the rollout. It takes back all bad hosts.

        :param why: the reason for the stop.
        :param take_back: whether the good hosts of the last batch are taken back, too.
        """
        hosts = self._bad | (set(self.last) if take_back else set())
        return Step(Action.STOP, tuple(sorted(hosts)), why)

    def those(self, *statuses: Status) -> tuple[str, ...]:
        """Return the hosts that are in one of these states."""
        if BAD.issuperset(statuses):
            return tuple(sorted(host for host in self._bad if self.hosts[host] in statuses))
        return tuple(host for host, status in self.hosts.items() if status in statuses)

    def held(self) -> dict[str, str]:
        """Return the hosts that can't change because another host must change first and has failed.

        :return: for each of them, that other host.
        """
        found: dict[str, str] = {}
        out = {Status.REFUSED, *BAD} - {Status.SENT, Status.APPLIED}
        if not any(status in out for status in self.hosts.values()):
            return found
        for host, status in self.hosts.items():  # the order of batches follows the links
            if status is Status.WAITING and host not in self._canaries:  # canaries go first in any case
                for other in self.started.before.get(host, ()):
                    if other in found or self.hosts.get(other) in out:
                        found[host] = other
                        break
        return found

    def counts(self) -> dict[str, int]:
        """Return the number of hosts in each state."""
        found = Counter(status.value for status in self.hosts.values())
        return {status.value: found[status.value] for status in Status if found[status.value]}

    def _too_much(self) -> str:
        """Return why too much has failed, so that the rollout must stop; empty if it may go on."""
        failed, refused = self.those(Status.FAILED), self.those(Status.REFUSED)
        most = self.started.pace.max_fail
        for host in (*failed, *refused):
            if host in self._canaries:
                return f"the canary {host} failed: {self.reasons[host]}"
        if len(failed) >= most:
            return f"{len(failed)} failed, and max_fail is {most}: {self._first(failed)}"
        if len(refused) > most:
            return f"{len(refused)} can't be prepared, and max_fail is {most}: {self._first(refused)}"
        return ""

    def _first(self, hosts: tuple[str, ...]) -> str:
        return f"{hosts[0]}: {self.reasons[hosts[0]]}"

    def _batch(self) -> tuple[str, ...]:
        """Return the hosts to change next: those left of a planned batch, but only as many as may still become bad."""
        held = self.held()
        while self._at < len(self.started.batches):
            batch = self.started.batches[self._at].hosts
            left = [host for host in batch if self.hosts[host] is Status.WAITING and host not in held]
            if left:
                return tuple(left[: max(self.budget, 0)])
            self._at += 1
        return ()
