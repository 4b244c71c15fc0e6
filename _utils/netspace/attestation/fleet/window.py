"""Sliding window over many minions: runs the work for each at its own speed, so that none waits for another.

The work for one minion is a generator: it yields a :class:`Call`, and is resumed with the :class:`Answer`. The window
sends the calls to many minions in few messages, and resumes each generator when its answer comes.

Each call belongs to a *lane*, which limits the number of open calls:

- ``ask``: ``concurrency`` slots for calls that make a host work, if the host counts as present;
- hosts that did not answer the last time have separate slots, half as many, so they delay no other host;
- ``parts``: a quarter as many, for parts of large answers, which share ``ROOM`` bytes;
- ``tell``: unlimited, because the host only stores something.

An answer proves nothing about its sender: Salt lets a minion answer in another minion's name. If the work finds that an
answer is false, it yields :class:`Again`, and is resumed with the next answer to the same call, until that call's
deadline. The work may refuse up to ``REFUSED`` answers to one call. Up to ``WAITING`` answers are kept while the work
does something else.

A call keeps its slot until the answer comes, but no longer than three times the 80th percentile of the times that
answers take. Then another call gets the slot, and the first goes on waiting until its deadline. So an absent host takes
a slot for seconds, not for the whole timeout. To prolong that time, more than a fifth of all hosts would have to be
slow on purpose. At most ``LENT`` calls per slot wait without one. So if the whole network is slow, the window does not
ask more and more hosts.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation.fleet.bus import Bus, Reply, Unreachable

ASK, PARTS, TELL = "ask", "parts", "tell"
_ABSENT = "absent"
# Calls per slot that wait for their deadlines without a slot.
LENT = 16
# Fewest seconds for which a call may keep its slot, and seconds for which a part of a large answer may keep one.
PATIENCE, PART_PATIENCE = 1.0, 2.0
# Fewest seconds for which calls are collected into one message, because Salt sends each message to all minions.
LINGER = 0.05
# Seconds by which this process may be late in reading answers before a host counts as late.
BEHIND = 5.0
# Seconds without reading after which this process counts as late.
BUSY = 1.0
# Seconds after which a message that the master did not accept is sent again.
RETRY = 2.0
# Bytes on disk for answers that are being fetched in parts.
ROOM = 2 * 1024 * 1024 * 1024
_SAMPLES = 128
# Answers to one call that the work may refuse.
REFUSED = 64
# Answers to one call that are kept while the work handles an earlier one.
WAITING = 8


@dataclass(frozen=True)
class Pace:
    """Pace at which the master asks its hosts; from the master's configuration.

    :param concurrency: number of hosts that are asked at one time.
    :param jitter: most seconds for which calls are collected before one message sends them.
    :param timeout: seconds that a host may take for one call.
    """

    concurrency: int = 32
    jitter: float = 1.0
    timeout: float = 60.0


@dataclass(frozen=True)
class Call:
    """One call of a function on one minion.

    :param each: name of the argument that maps each minion's id to its own *value*; empty if there is none.
    :param common: arguments for all minions; only calls with equal ones share a message.
    :param within: seconds that this call may take, if less than the timeout.
    :param size: bytes that the minion's whole answer will take, in the lane ``parts``.
    """

    function: str
    each: str = ""
    value: Any = None
    common: Mapping[str, Any] = field(default_factory=dict)
    lane: str = ASK
    within: float | None = None
    size: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer to a :class:`Call`.

    :param problem: why there is no answer; empty if there is one.
    :param took: seconds since the call was sent.
    :param silent: no answer came by the deadline.
    :param crowded: the transfer was slow while others waited for its room, so it was ended; it may be tried once more.
    """

    value: Any = None
    problem: str = ""
    took: float = 0.0
    silent: bool = False
    crowded: bool = False


@dataclass(frozen=True)
class Again:
    """Step that asks for the next answer to the last call, because the last answer was false.

    Calls for parts do not count here.
    """


Step = Call | Again
Work = Generator[Step, Answer, None]
Task = tuple[str, Work]


@dataclass
class _Heard:
    """A call that has been answered, kept because the work may ask for another answer.

    :param replies: answers that came since.
    :param refused: number of answers that the work refused.
    """

    call: Call
    job: str
    sent: float
    until: float
    replies: deque[Reply] = field(default_factory=lambda: deque(maxlen=WAITING))
    refused: int = 0


@dataclass(eq=False)
class _Task:
    """The work for one minion, and its state.

    :param home: lane of its calls in ``ask``: present or absent hosts.
    :param call: the call that it waits for. After it was sent, *sent* and *until* are its time and deadline, by the
        bus's clock.
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
    heard: _Heard | None = None


class _Pulse:
    """Statistics of the time that answers take.

    :param fixed: patience to use instead of the measured one.
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


class _Lane:
    """Slots for one kind of calls.

    :param limit: number of slots; 0 for no limit.
    :param jitter: most seconds for which its calls are collected, in addition to ``LINGER``.
    :param room: bytes that its answers may take together; 0 if they need no room.
    """

    def __init__(self, limit: int, jitter: float, room: int = 0, pulse: _Pulse | None = None) -> None:
        self.limit, self.jitter, self.room = limit, jitter, room
        self.going: deque[_Task] = deque()  # tasks that wait for a slot only
        self.coming: deque[_Task] = deque()  # tasks that wait for room, too
        self.slots = self.lent = self.held = 0  # used slots, calls without a slot, used room
        self.order: deque[tuple[_Task, str]] = deque()  # calls that were sent with a slot, the oldest first
        self.pulse = _Pulse() if pulse is None else pulse

    def free(self) -> bool:
        return not self.limit or (self.slots < self.limit and self.lent < LENT * self.limit)

    def next(self) -> _Task | None:
        """Return the next task whose call may be sent, with its room reserved; None if there is none."""
        if self.going:
            return self.going.popleft()
        if self.coming and (not self.held or self.held + self.coming[0].call.size <= self.room):
            task = self.coming.popleft()
            task.room = task.call.size
            self.held += task.room
            return task
        return None


@dataclass
class _Message:
    """Calls that are collected for one message.

    :param due: time at which the message is sent.
    """

    function: str
    each: str
    common: Mapping[str, Any]
    due: float
    tasks: list[_Task] = field(default_factory=list)


class Window:
    """Sliding window over the work for many minions; see the module."""

    def __init__(self, bus: Bus, pace: Pace, room: int = ROOM) -> None:
        slots, pulse = pace.concurrency, _Pulse()
        self._bus, self._pace = bus, pace
        self._lanes = {
            ASK: _Lane(slots, pace.jitter, pulse=pulse),
            _ABSENT: _Lane(max(1, slots // 2), pace.jitter, pulse=pulse),
            # All hosts that send parts may be hostile at once, so this lane's patience is fixed, not measured.
            PARTS: _Lane(max(1, slots // 4), 0.0, room, _Pulse(PART_PATIENCE)),
            TELL: _Lane(0, pace.jitter),
        }
        self._outbox: dict[tuple[str, str], _Message] = {}
        self._out: dict[tuple[str, str], _Task] = {}
        self._heard: dict[tuple[str, str], _Heard] = {}
        self._deadlines: list[tuple[float, int, _Task, str]] = []
        self._number = itertools.count()
        self._reached = False
        self._failing: float | None = None

    def run(self, present: Iterable[Task], absent: Iterable[Task] = ()) -> None:
        """Run the work for all minions, and return when all of it has ended.

        :param absent: work for minions that did not answer the last time; it has slots of its own.
        :raises NetspaceError: when the master can't be reached. Errors from a minion's work pass through.
        """
        behind = iter(absent)
        feeds: dict[str, Iterator[Task]] = {ASK: itertools.chain(present, behind), _ABSENT: behind}
        # *read* is the time up to which all arrived answers were read; deadlines are compared with it. So an answer
        # that arrived in time counts, even if this process was busy (judging, or waiting for the master) and reads it
        # up to BEHIND seconds after that.
        read = returned = until = self._bus.clock()
        while True:
            now = self._bus.clock()
            if now >= until:
                read = max(read, now - BEHIND)
            self._expire(read)
            self._lend(read)
            for name, lane in self._lanes.items():
                self._fill(name, lane, feeds.get(name, iter(())), now)
            self._send(read)
            if not self._out and not self._outbox:
                if any(lane.going or lane.coming for lane in self._lanes.values()):
                    continue
                return
            if self._bus.clock() - returned > BUSY:
                until = self._bus.clock() + BEHIND
            reply = self._bus.receive(self._pause())
            returned = self._bus.clock()
            if reply is None:
                read = returned
            else:
                self._take(reply)

    # -- a minion's work -------------------------------------------------------------
    def _resume(self, task: _Task, answer: Answer | None) -> None:
        """Resume the work for a minion, and queue its next call."""
        try:
            step = next(task.work) if answer is None else task.work.send(answer)
            while isinstance(step, Again):
                found = self._another(task)
                if found is None:
                    return
                step = task.work.send(found)
        except StopIteration:
            self._leave(task)
            self._forget(task)
            return
        task.call = step
        lane = self._lane(task)
        if not lane.room or (answer is not None and answer.crowded):
            self._leave(task)
        (lane.coming if lane.room and not task.room else lane.going).append(task)

    def _another(self, task: _Task) -> Answer | None:
        """Return the next answer to the call that was answered last; None if the task waits for it."""
        heard = task.heard
        if heard is None:
            return Answer(problem="nothing was asked", silent=True)
        self._leave(task)
        heard.refused += 1
        if heard.refused > REFUSED:
            return Answer(problem=f"more than {REFUSED} answers in its name were refused", silent=True)
        if heard.replies:
            reply = heard.replies.popleft()
            return Answer(reply.value, reply.problem, self._bus.clock() - heard.sent)
        task.call, task.job, task.sent, task.until = heard.call, heard.job, heard.sent, heard.until
        self._out[task.job, task.minion] = task
        self._lane(task).lent += 1  # another call may have the slot by now
        heapq.heappush(self._deadlines, (task.until, next(self._number), task, task.job))
        return None

    def _forget(self, task: _Task) -> None:
        """Stop keeping further answers to the call that was answered last."""
        if task.heard is not None:
            self._heard.pop((task.heard.job, task.minion), None)
            task.heard = None

    def _leave(self, task: _Task) -> None:
        """Release the room that a task holds."""
        self._lanes[PARTS].held -= task.room
        task.room = 0

    def _lane(self, task: _Task) -> _Lane:
        return self._lanes[task.home if task.call.lane == ASK else task.call.lane]

    # -- sending ---------------------------------------------------------------------
    def _fill(self, name: str, lane: _Lane, feed: Iterator[Task], now: float) -> None:
        """Give free slots to waiting tasks, or if none waits, begin the work for the next minion."""
        while lane.free():
            task = lane.next()
            if task is None and lane.coming:
                if not self._evict(lane):
                    return
            elif task is None:
                begun = next(feed, None)
                if begun is None:
                    return
                self._resume(_Task(*begun, home=name), None)
            else:
                task.slot = True
                lane.slots += 1
                self._collect(task, lane, now)

    def _evict(self, lane: _Lane) -> bool:
        """End the oldest call that lost its slot and holds room, because others wait for this room.

        Return whether there was such a call.
        """
        slow = [task for task in self._out.values() if task.room and not task.slot and self._lane(task) is lane]
        if not slow:
            return False
        task = min(slow, key=lambda one: one.sent)
        self._end(task, Answer(problem="it was slow while others waited", took=self._took(task), crowded=True))
        return True

    def _collect(self, task: _Task, lane: _Lane, now: float) -> None:
        call = task.call
        key = (call.function, repr(call.common))
        if key not in self._outbox:
            due = now + LINGER + random.uniform(0, lane.jitter)  # noqa: S311 (no secret: a herd that is to scatter)
            self._outbox[key] = _Message(call.function, call.each, call.common, due)
        self._outbox[key].tasks.append(task)

    def _send(self, now: float) -> None:
        """Send the messages that are due."""
        for key, message in list(self._outbox.items()):
            if message.due <= now:
                while message.tasks:
                    some = message.tasks[: self._pace.concurrency]
                    try:
                        self._post(message, some)
                    except Unreachable:
                        if self._given_up():
                            raise
                        message.due = self._bus.clock() + RETRY
                        return
                    self._reached, self._failing = True, None
                    message.tasks = message.tasks[len(some) :]
                del self._outbox[key]

    def _given_up(self) -> bool:
        """Return whether the master has accepted no message at all, or none for a whole timeout.

        A master that is only busy for a moment must not end a round.
        """
        now = self._bus.clock()
        self._failing = now if self._failing is None else self._failing
        return not self._reached or now - self._failing > self._pace.timeout

    def _post(self, message: _Message, tasks: Sequence[_Task]) -> None:
        arguments = dict(message.common)
        if message.each:
            arguments[message.each] = {task.minion: task.call.value for task in tasks}
        sent = self._bus.send([task.minion for task in tasks], message.function, arguments)
        now = self._bus.clock()
        for task in tasks:
            within = task.call.within
            task.job, task.sent = sent.job, now
            task.until = now + (self._pace.timeout if within is None else min(within, self._pace.timeout))
            self._out[task.job, task.minion] = task
            heapq.heappush(self._deadlines, (task.until, next(self._number), task, task.job))
            if self._lane(task).limit:
                self._lane(task).order.append((task, task.job))
        for task in tasks:
            if task.minion in sent.unknown:
                self._end(task, Answer(problem="the master has no accepted key of it", silent=True))

    # -- answers and deadlines -------------------------------------------------------
    def _take(self, reply: Reply) -> None:
        """Handle an answer from the bus.

        The first answer to an open call ends it. Later answers are kept in case the work refuses the first; all others
        are ignored.
        """
        task = self._out.get((reply.job, reply.minion))
        if task is None:
            heard = self._heard.get((reply.job, reply.minion))
            # The oldest answers are kept, so that a flood of false answers cannot displace them.
            if heard is not None and len(heard.replies) < WAITING:
                heard.replies.append(reply)
            return
        took = self._took(task)
        if task.call.lane != PARTS and (task.heard is None or task.heard.job != task.job):
            self._forget(task)
            task.heard = _Heard(task.call, task.job, task.sent, task.until)
            self._heard[task.job, task.minion] = task.heard
        self._lane(task).pulse.note(took)
        self._end(task, Answer(reply.value, reply.problem, took))

    def _end(self, task: _Task, answer: Answer) -> None:
        """End a call: release its slot, and resume the minion's work with *answer*."""
        del self._out[task.job, task.minion]
        lane = self._lane(task)
        if task.slot:
            lane.slots -= 1
        else:
            lane.lent -= 1
        task.slot = False
        if not answer.silent:
            task.home = ASK
        self._resume(task, answer)

    def _expire(self, now: float) -> None:
        """End the calls whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, task, job = heapq.heappop(self._deadlines)
            if self._out.get((job, task.minion)) is task:
                self._end(task, Answer(problem=f"did not answer within {task.until - task.sent:.0f} s",
                                       took=task.until - task.sent, silent=True))  # fmt: skip

    def _lend(self, now: float) -> None:
        """Take the slots of calls that have waited longer than the lane's patience."""
        for lane in self._lanes.values():
            patience = lane.pulse.patience(self._pace.timeout)
            while lane.order:
                task, job = lane.order[0]
                asked = self._out.get((job, task.minion)) is task
                if asked and now < task.sent + patience:
                    break
                lane.order.popleft()
                if asked:
                    task.slot = False
                    lane.slots -= 1
                    lane.lent += 1

    def _took(self, task: _Task) -> float:
        return self._bus.clock() - task.sent

    def _pause(self) -> float:
        """Return the seconds until the next message, deadline or loss of a slot; at most 1."""
        times = [message.due for message in self._outbox.values()]
        times += [
            lane.order[0][0].sent + lane.pulse.patience(self._pace.timeout)
            for lane in self._lanes.values()
            if lane.order
        ]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(max(min(times) - self._bus.clock(), 0.001), 1.0)
