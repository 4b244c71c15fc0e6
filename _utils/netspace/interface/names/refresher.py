"""The one process that looks up the names in rules of ``allow``, whenever their time to live has ended.

It is a service like the health service: the supervisor keeps it running, and it exists only while some rule has a name.
It takes the names from the interfaces' records, writes the answers to ``record``, and fills the sets of the packet
filters. If it is killed, the kernel lets packets to the known addresses pass until their time ends.

Each answer takes effect as soon as it comes, so a silent name server delays no other name. The number of open questions
is bounded: in total, per environment, per owner of names, and for names that had no answer last time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path

from netspace import files, library_copy
from netspace.errors import NetspaceError
from netspace.interface import record as records
from netspace.interface.names import answers, record, resolver, sets
from netspace.interface.names.answers import Known
from netspace.interface.names.record import Key
from netspace.layout import Layout
from netspace.supervision.service import Service

NAME = "names"
"""The service's name."""
LOOK = 1.0
"""Seconds between two checks whether records have changed."""
GATHER = 1.0
"""The most seconds that a check waits for answers. The next check takes the answers that come later."""
THREADS = 16
"""The greatest number of DNS queries that are open at once."""
OF_ENVIRONMENT, OF_OWNER, OF_SILENT = 4, 2, 4
"""Of these, the most of one environment; of names with the same two last labels; that had no answer last time."""

Ask = Callable[[str, str, Path], dict[str, float]]


def service(layout: Layout, version: str) -> Service:
    """Return the definition of the service that looks up names.

    :param version: the digest of the library's copy that the service runs.
    """
    return Service(
        name=NAME,
        description=f"{layout.instance}: the addresses of names in rules",
        command=library_copy.command(layout, "names"),
        variables={"NETSPACE_LIBRARY": version},  # a new library restarts the service
        stop_timeout=5.0,
    )


class Here(Executor):
    """An executor without threads: ``submit`` runs the call and returns when it has finished."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # typeshed's signature has a ParamSpec
        done: Future[object] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as err:  # result() raises it
            done.set_exception(err)
        return done


def chosen(
    due: Collection[Key], going: Collection[Key], about: Mapping[Key, Known], of: Mapping[Key, Collection[str]]
) -> list[Key]:
    """Return the questions to ask now, in order. Pure.

    Names that answered last time come first, then the names that have waited longest.

    :param due: the names to look up.
    :param going: the questions that are open.
    :param about: the state of each name.
    :param of: the environments whose rules have each name. A question counts for the environment that has the fewest
        open questions.
    """
    counts: dict[tuple[str, str], int] = {}

    def uses(key: Key) -> dict[tuple[str, str], int]:
        """Return the limits on open questions that apply to a question: the greatest number, by group of questions.

        A group has, for example, all questions of one environment, or all questions about names of one owner.
        """
        environments = sorted(("environment", one) for one in of.get(key, ()))
        found = {("all", ""): THREADS, ("owner", ".".join(key[0].split(".")[-2:])): OF_OWNER}
        if environments:
            found[min(environments, key=lambda one: counts.get(one, 0))] = OF_ENVIRONMENT
        if about.get(key, Known()).failures:
            found["silent", ""] = OF_SILENT
        return found

    def count(one: Iterable[tuple[str, str]]) -> None:
        for each in one:
            counts[each] = counts.get(each, 0) + 1

    for key in sorted(going):
        count(uses(key))

    def order(key: Key) -> tuple[bool, float, Key]:
        known = about.get(key, Known())
        return known.failures > 0, known.due, key

    found = []
    for key in sorted(set(due) - set(going), key=order):
        used = uses(key)
        if all(counts.get(one, 0) < most for one, most in used.items()):
            found.append(key)
            count(used)
    return found


class Refresher:
    """The names to look up, and the known answers.

    :param ask: asks a resolver; see ``resolver.ask``.
    :param pool: runs the questions concurrently; None: the questions are asked one after the other.
    """

    def __init__(self, layout: Layout, ask: Ask = resolver.ask, pool: Executor | None = None) -> None:
        self.layout = layout
        self.known = record.read(layout)
        self._ask = ask
        self._pool = Here() if pool is None else pool
        self._going: dict[Key, Future[dict[str, float]]] = {}
        self._wanted: dict[Key, set[str]] = {}
        self._stamp: tuple[int, ...] = ()
        self._unfilled: set[str] = set()
        self._unwritten = False
        self._unread: dict[str, str] = {}
        self._told: dict[str, str] = {}

    def step(self, now: float) -> None:
        """Look up the names that are due, write the new answers, and fill the sets of the packet filters.

        :param now: seconds since the epoch.
        """
        changed = self._reread()
        answered = self._answers(now)
        changed |= {name for name, _ in answered}
        gone = self.known.keys() - self._wanted.keys()
        if answered or gone:
            kept = record.bounded({key: one for key, one in self.known.items() if key not in gone})
            changed |= {key[0] for key in kept if kept[key] is not self.known[key]}
            self.known, self._unwritten = kept, True
        self._tell(self._unread | self._write() | self._fill(changed | self._unfilled, now))

    def _write(self) -> dict[str, str]:
        """Write the answers if they have changed; return an error, if any.

        If the disk is full, the answers still get into the sets.
        """
        if not self._unwritten:
            return {}
        try:
            record.write(self.layout, self.known)
        except OSError as err:
            return {"record": f"{record.path(self.layout)}: {err}; the answers are lost at the next start"}
        self._unwritten = False
        return {}

    def _answers(self, now: float) -> set[Key]:
        """Ask the questions that are due; return the names whose answers came within :data:`GATHER` seconds."""
        over: set[Key] = set()
        end = time.monotonic() + GATHER
        while True:
            due = [key for key in self._wanted if answers.overdue(self.known.get(key, Known()), now)]
            for key in chosen(due, self._going, self.known, self._wanted):
                self._going[key] = self._pool.submit(self._ask, *key, self.layout.root / "etc/resolv.conf")
            done = {key: future for key, future in self._going.items() if future.done()}
            for key, future in done.items():
                del self._going[key]
                if key in self._wanted:
                    self.known[key] = self._state(key, future, now)
                    over.add(key)
            left = end - time.monotonic()
            if left <= 0 or not (done or self._going):
                return over
            if not done:
                wait(self._going.values(), left, FIRST_COMPLETED)

    def _state(self, key: Key, future: Future[dict[str, float]], now: float) -> Known:
        before = self.known.get(key, Known())
        try:
            return answers.answered(before, future.result(), now)
        except resolver.UnansweredError as err:
            return answers.failed(before, err.code, err.why, now)

    def _reread(self) -> set[str]:
        """Read the interfaces' records again if their folder has changed; return the names that are new."""
        try:
            info = os.stat(self.layout.records(records.KIND))
            # Right after a change, another one may leave the same time: then read again at the next check.
            recent = time.time_ns() - info.st_mtime_ns < 100_000_000
            stamp: tuple[int, ...] = (info.st_mtime_ns, info.st_ino, *([time.time_ns()] if recent else []))
        except FileNotFoundError:
            stamp = (0,)
        if stamp == self._stamp:
            return set()
        try:
            names = files.record_names(self.layout.records(records.KIND))
            every = records.some(self.layout, names)
        except (NetspaceError, OSError) as err:
            self._unread = {"records": str(err)}
            return set()
        before, self._stamp, self._unread = self._wanted, stamp, {}
        wanted: dict[Key, set[str]] = {}
        for environment, one in every.items():
            for key in record.asked_for([one.interface]):
                wanted.setdefault(key, set()).add(environment)
        if len(wanted) > record.KEYS:  # those that were looked up already stay
            kept = sorted(wanted, key=lambda key: (key not in before, key not in self.known, key))[: record.KEYS]
            self._unread = {"rules": f"more than {record.KEYS} names; {len(wanted) - len(kept)} are not looked up"}
            wanted = {key: wanted[key] for key in kept}
        self._wanted = wanted
        return {name for name, _ in wanted.keys() - before.keys()}

    def _fill(self, names: Collection[str], now: float) -> dict[str, str]:
        """Fill the sets of these names; return the errors.

        After an error, the next step tries again, because an apply may not have loaded the sets yet.
        """
        if not names:
            return {}
        try:
            errors = sets.fill(self.layout, names, now, self.known)
        except (NetspaceError, OSError) as err:
            errors = {"host": str(err)}
        self._unfilled = set(names) if errors else set()
        return errors

    def _tell(self, errors: dict[str, str]) -> None:
        for name, error in errors.items():
            if self._told.get(name) != error:
                sys.stderr.write(f"netspace names: {name}: {error}\n")
        sys.stderr.flush()
        self._told = errors


def main(layout: Layout) -> int:
    """Look up names until SIGTERM or SIGINT; return an exit code."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with ThreadPoolExecutor(THREADS) as pool:
        refresher = Refresher(layout, pool=pool)
        while not over.is_set():
            refresher.step(time.time())
            over.wait(LOOK)
        pool.shutdown(wait=False, cancel_futures=True)
    return 0
