"""Lanes: limits for calls of one kind (a number of slots, and room in bytes), and queues of work that waits for a slot.

Pure: a lane sends nothing and has no clock. The caller, :mod:`netspace.attestation.fleet.window`, passes times as
arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from netspace.attestation.fleet.calls import Call, Reply, Work

# Calls per slot that wait for their deadlines without a slot.
LENT = 16
# Fewest seconds for which a call may keep its slot, and seconds for which a part of a large answer may keep one.
PATIENCE, PART_PATIENCE = 1.0, 2.0
_SAMPLES = 128
# Answers to one call that are kept while the work handles an earlier one.
WAITING = 8


@dataclass
class Heard:
    """A call that has been answered. The window keeps the call, because the work may ask for another answer.

    :param replies: further answers that came.
    :param refused: number of answers that the work refused.
    """

    call: Call
    job: str
    sent: float
    until: float
    replies: deque[Reply] = field(default_factory=lambda: deque(maxlen=WAITING))
    refused: int = 0


@dataclass(eq=False)
class Running:
    """The work for one minion, and its state.

    :param home: the lane for this minion's calls of the kind ``ask``: that of present hosts, or that of absent hosts.
    :param call: the call for whose answer the work waits. After the call is sent, *sent* and *until* are its time and
        its deadline, by the bus's clock.
    """

    minion: str
    work: Work
    home: str
    call: Call = field(default_factory=lambda: Call(""))
    job: str = ""
    sent: float = 0.0
    until: float = 0.0
    slot: bool = False
    room: int = 0
    heard: Heard | None = None


class Pulse:
    """Statistics of the time that answers take.

    :param fixed: seconds that :meth:`patience` returns instead of a measured value.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self._fixed = fixed
        self._took: deque[float] = deque(maxlen=_SAMPLES)
        self._patience: float | None = None

    def note(self, took: float) -> None:
        self._took.append(took)
        self._patience = None

    def patience(self, timeout: float) -> float:
        """Return the seconds after which a call loses its slot."""
        if self._fixed is not None:
            return self._fixed
        if self._patience is None:
            typical = sorted(self._took)[len(self._took) * 4 // 5] if self._took else timeout / 12
            self._patience = min(max(3 * typical, PATIENCE), timeout)
        return self._patience


class Lane:
    """Slots for calls of one kind.

    :param limit: number of slots; 0 for no limit.
    :param jitter: the longest time, in seconds, for which calls are collected, in addition to ``LINGER``.
    :param room: bytes that all answers together may take; 0 if answers need no room.
    """

    def __init__(self, limit: int, jitter: float, room: int = 0, pulse: Pulse | None = None) -> None:
        self.limit, self.jitter, self.room = limit, jitter, room
        self.going: deque[Running] = deque()  # tasks that wait for a slot only
        self.coming: deque[Running] = deque()  # tasks that wait for room, too
        self.slots = self.lent = self.held = 0  # used slots, calls without a slot, used room
        self.order: deque[tuple[Running, str]] = deque()  # calls that were sent with a slot, the oldest first
        self.pulse = Pulse() if pulse is None else pulse

    def free(self) -> bool:
        return not self.limit or (self.slots < self.limit and self.lent < LENT * self.limit)

    def next(self) -> Running | None:
        """Reserve room for the next call that may be sent, and return its task; None if no call may be sent."""
        if self.going:
            return self.going.popleft()
        if self.coming and (not self.held or self.held + self.coming[0].call.size <= self.room):
            task = self.coming.popleft()
            task.room = task.call.size
            self.held += task.room
            return task
        return None
