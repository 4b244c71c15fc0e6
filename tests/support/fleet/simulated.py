"""A simulated fleet for rollouts: hosts that fail, and a master that is killed at any point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from netspace.fleet.hosts import Outcome
from netspace.fleet.rollout import machine, records
from netspace.fleet.rollout.journal import Asked, Journal
from netspace.fleet.rollout.machine import Edges
from netspace.fleet.rollout.state import Rollout


class Killed(BaseException):
    """Exception that stands for SIGKILL; the library must not catch it."""


class Killer:
    """A counter of the points at which the master can be killed; it kills the master at some of them."""

    def __init__(self, at: Iterable[int] = (), then: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.passed, self._at, self.then = 0, set(at), dict(then or {})

    def point(self) -> None:
        number, self.passed = self.passed, self.passed + 1
        if number in self.then:
            self.then[number]()
        if number in self._at:
            raise Killed


class KilledJournal(Journal):
    """A journal whose writer is killed before, within and after its writes."""

    def __init__(self, folder: Path, killer: Killer, done: set[str]) -> None:
        super().__init__(folder)
        self._killer, self._done = killer, done

    def append(self, record: records.Entry) -> None:
        self._killer.point()
        try:
            self._killer.point()
        except Killed:
            with open(self.folder / "journal", "ab") as stream:
                line = msgspec.json.encode(record)
                stream.write(line[: len(line) // 2])
            raise
        super().append(record)
        if isinstance(record, records.Judged):
            self._done |= {host for host, reason in record.outcomes.items() if not reason}
        if isinstance(record, records.Stopping):
            self._done.clear()
        self._killer.point()


class Simulated:
    """Simulated hosts with their true state. A host is bad from the first call to it until it is found good.

    :param fails: for each host, the names of the calls that fail there: ``prepare``, ``apply``, ``healthy``,
        ``take_back`` or ``healthy_again``. If ``silent`` is among the names, the host gives no answer to these calls.
    """

    def __init__(self, fails: Mapping[str, frozenset[str]], max_fail: int, killer: Killer) -> None:
        self.fails, self.max_fail, self.killer = fails, max_fail, killer
        self.bad: set[str] = set()
        self.done: set[str] = set()
        self.returned: set[str] = set()
        self.worst = 0
        self.applied: list[str] = []

    def prepare(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        self.killer.point()
        return self._told(hosts, "prepare")

    def apply(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        assert not set(hosts) & self.done, "a host that is done is asked again"
        self.applied += hosts
        self._change(hosts)
        return self._told(hosts, "apply")

    def take_back(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        self.returned |= set(hosts)
        self._change(hosts)
        return self._told(hosts, "take_back")

    def healthy(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        self.killer.point()
        told = {
            host: self._told([host], "healthy_again" if host in self.returned else "healthy").get(host)
            for host in hosts
        }
        found = {host: one for host, one in told.items() if one is not None}
        self.bad -= {host for host, one in found.items() if one.ok}
        self.killer.point()
        return found

    def _change(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            self.killer.point()
            self.bad.add(host)
            self.worst = max(self.worst, len(self.bad))
        self.killer.point()

    def _told(self, hosts: Sequence[str], call: str) -> dict[str, Outcome]:
        failing = {host for host in hosts if call in self.fails.get(host, ())}
        return {
            host: Outcome(host not in failing, f"{call} failed" if host in failing else "")
            for host in hosts
            if host not in failing or "silent" not in self.fails[host]
        }


def rolled_out(
    folder: Path, started: records.Started, hosts: Simulated, then: Mapping[int, Asked] | None = None
) -> Rollout:
    """Run a rollout on a master that is killed and started again; return the rollout's final record.

    :param then: operators' requests, by the point at which they are made.
    """
    journal = KilledJournal(folder, hosts.killer, hosts.done)
    hosts.killer.then = {number: functools.partial(journal.ask, what) for number, what in (then or {}).items()}
    journal.begin(started)
    for _ in range(1000):
        try:
            with journal.lock():
                rollout = KilledJournal(folder, hosts.killer, hosts.done).read()
                assert rollout is not None
                assert rollout.bad >= hosts.bad, "the journal knows of each bad host"
                if rollout.paused:
                    journal.append(records.Resumed())
                    rollout.take(records.Resumed())
                machine.run(
                    journal, rollout, Edges(hosts, wait=lambda seconds: hosts.killer.point(), clock=lambda: 1.0)
                )
                if rollout.ended is not None:
                    return rollout
        except Killed:
            journal = KilledJournal(folder, hosts.killer, hosts.done)
    raise AssertionError("the rollout never ends")
