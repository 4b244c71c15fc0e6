"""The one process that looks up the names in rules of ``allow``, when their time to live is over.

It is a service like the watch of health: the supervisor keeps it running, and there is one only while some rule has a
name. It learns the names from the interfaces' records, writes answers to ``record``, and fills the sets of the packet
filters. If it is killed, the kernel lets the known addresses pass until they end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
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
THREADS = 8

Ask = Callable[[str, str, Path], dict[str, float]]


def service(layout: Layout) -> Service:
    """Return the service that looks up names."""
    return Service(
        name=NAME,
        description=f"{layout.instance}: the addresses of names in rules",
        command=library_copy.command(layout, "names"),
        variables={"NETSPACE_LIBRARY": library_copy.installed(layout)},  # a new library restarts the service
        stop_timeout=5.0,
    )


class Refresher:
    """The names that are asked for, and what is known of them.

    :param ask: asks a resolver; see ``resolver.ask``.
    """

    def __init__(self, layout: Layout, ask: Ask = resolver.ask) -> None:
        self.layout = layout
        self.known = record.read(layout)
        self._ask = ask
        self._wanted: set[Key] = set()
        self._stamp: tuple[int, ...] = ()
        self._unfilled: set[str] = set()
        self._told: dict[str, str] = {}

    def step(self, now: float, map_: Callable[..., object] = map) -> None:
        """Look up what is due, write it, and fill the sets.

        :param now: seconds since the epoch.
        :param map_: calls a function for each of several values, like ``map``; a pool's does it at once for all.
        """
        fresh = self._reread()
        due = sorted(key for key in self._wanted if answers.overdue(self.known.get(key, Known()), now))
        changed = {name for name, _ in due} | fresh
        if due:
            found = dict(zip(due, map_(lambda key: self._looked_up(key, now), due), strict=True))  # type: ignore[call-overload]
            self.known.update(found)
        if gone := self.known.keys() - self._wanted:
            self.known = {key: one for key, one in self.known.items() if key not in gone}
        if due or gone:
            record.write(self.layout, self.known)
        self._fill(changed | self._unfilled, now)

    def _looked_up(self, key: Key, now: float) -> Known:
        before = self.known.get(key, Known())
        try:
            return answers.answered(before, self._ask(*key, self.layout.root / "etc/resolv.conf"), now)
        except resolver.UnansweredError as err:
            return answers.failed(before, err.code, err.why, now)

    def _reread(self) -> set[str]:
        """Read the records again if their folder has changed; return the names that are new."""
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
            self._tell({"records": str(err)})
            return set()
        before, self._stamp = self._wanted, stamp
        self._wanted = record.asked_for(one.interface for one in every.values())
        return {name for name, _ in self._wanted - before}

    def _fill(self, names: Collection[str], now: float) -> None:
        """Fill the sets of these names. Try again soon if an apply has not loaded the sets yet."""
        if not names:
            return
        try:
            errors = sets.fill(self.layout, names, now)
        except (NetspaceError, OSError) as err:
            errors = {"host": str(err)}
        self._unfilled = set(names) if errors else set()
        self._tell(errors)

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
    refresher = Refresher(layout)
    with ThreadPoolExecutor(THREADS) as pool:
        while not over.is_set():
            refresher.step(time.time(), pool.map)
            over.wait(LOOK)
        pool.shutdown(wait=False, cancel_futures=True)
    return 0
