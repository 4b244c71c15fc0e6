"""The environment that sent a request, as the broker authenticated it, with the facts that the host knows about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from netspace.host.peer.health import Health
from netspace.host.peer.told import Known, Told
from netspace.supervision import process

MEMBERS = 64
"""The most processes that are looked at to find when a program was started."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a verb that takes no arguments."""


class Unchanged(Exception):
    """Error: the answer is still the one that the asker has. The peer answers when it changes, or after some time."""


class Later(Exception):
    """The answer needs root's rights, so the keeper of children answers (``netspace.host.keeper``)."""


class Asker(msgspec.Struct, frozen=True):
    """An environment that sent a request to its host.

    :param name: its name. The broker proves it: the request came through an exchange to which only this environment may
        write.
    :param own: the host's facts about it.
    :param told: the host's facts about all environments.
    :param now: the time, in seconds since 1970.
    :param patient: whether the peer may hold back the answer until it changes.
    :param health: returns the health of an environment, by its name; see :meth:`netspace.host.peer.health.Marks.of`.
    """

    name: str
    own: Known
    told: Told
    now: float
    patient: bool = False
    health: Callable[[str], Health | None] = lambda _: None

    def started(self) -> float | None:
        """Return when the environment's program was started, in seconds since 1970 (to hundredths); None if unknown.

        The oldest process in the environment's control group counts as the program.
        """
        pids = process.members(self.own.group)[:MEMBERS]
        ticks = [there.ticks for pid in pids if (there := process.stat(int(pid))) is not None and there.ticks > 0]
        if not ticks:
            return None
        booted = self.now - time.clock_gettime(time.CLOCK_BOOTTIME)
        return round(booted + min(ticks) / _TICKS, 2)
