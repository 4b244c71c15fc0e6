"""The environment that asks, as the broker proves it, with what the host knows of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from netspace.host.peer.health import Health
from netspace.host.peer.told import Known, Told
from netspace.supervision import process

MEMBERS = 64
"""The most processes that are looked at to find when a program was started."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a verb that takes none."""


class Unchanged(Exception):
    """The asker knows the answer already. The host gives it once it has changed, or after some time."""


@dataclass(frozen=True)
class Asker:
    """An environment that asks its host.

    :param name: by the exchange that its message came through, which no other environment may write to.
    :param own: what the host knows of it.
    :param now: the time, in seconds since 1970.
    :param patient: the answer may be put off until it has changed (:class:`Unchanged`).
    :param health: returns the health of an environment of this host, as far as it can be seen.
    """

    name: str
    own: Known
    told: Told
    now: float
    patient: bool = False
    health: Callable[[str], Health | None] = lambda _: None

    def started(self) -> float | None:
        """Return when its program was started, in seconds since 1970, to hundredths; None: it can't be found.

        The program is the oldest process of its control group.
        """
        pids = process.members(self.own.group)[:MEMBERS]
        ticks = [there.ticks for pid in pids if (there := process.stat(int(pid))) is not None and there.ticks > 0]
        if not ticks:
            return None
        booted = self.now - time.clock_gettime(time.CLOCK_BOOTTIME)
        return round(booted + min(ticks) / _TICKS, 2)
