"""The environment that sent a request, as the broker authenticated it, with the facts that the host knows about it."""

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
    """Arguments of a verb that takes none."""


class Unchanged(Exception):
    """The asker knows the answer already. The host gives it once it has changed, or after some time."""


class Later(Exception):
    """The answer needs root's rights. The keeper of children gives it (``netspace.host.keeper``)."""


@dataclass(frozen=True)
class Asker:
    """An environment that sent a request to its host.

    :param name: its name. It follows from the exchange that the message came through, to which no other environment may
        write.
    :param own: the host's facts about it.
    :param told: the host's facts about all environments.
    :param now: the time, in seconds since 1970.
    """

    name: str
    own: Known
    told: Told
    now: float
    patient: bool = False
    health: Callable[[str], Health | None] = lambda _: None

    def started(self) -> float | None:
        """Return when its program was started, in seconds since 1970 (to hundredths); None if unknown.

        The oldest process in its control group counts as the program.
        """
        pids = process.members(self.own.group)[:MEMBERS]
        ticks = [there.ticks for pid in pids if (there := process.stat(int(pid))) is not None and there.ticks > 0]
        if not ticks:
            return None
        booted = self.now - time.clock_gettime(time.CLOCK_BOOTTIME)
        return round(booted + min(ticks) / _TICKS, 2)
