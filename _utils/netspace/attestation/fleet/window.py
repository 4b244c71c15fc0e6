"""Sliding window over many minions: runs the work for each at its own speed, so that no minion waits for another.

The work for one minion is a generator: it yields a :class:`Call`, and is resumed with the :class:`Answer`. The window
sends the calls to many minions in few messages, and resumes each generator when its answer comes.

Each call belongs to a *lane*. The lane limits the number of open calls:

- ``ask``: ``concurrency`` slots for calls to present hosts that take the host some work, such as a quote;
- ``ask`` for hosts that did not answer in the last round: separate slots (half of ``concurrency``), so that these hosts
  delay no other host;
- ``parts``: slots for parts of large answers (a quarter of ``concurrency``), which share ``ROOM`` bytes;
- ``tell``: unlimited, because the host only stores a value.

An answer proves nothing about its sender: Salt lets a minion answer in another minion's name. If the work finds that an
answer is false, it yields :class:`Again`. The window then resumes the work with the next answer to the same call, until
that call's deadline. The work may refuse up to ``Pace.refused`` answers to one call. Up to ``WAITING`` answers are kept
while the work does something else.

A call keeps its slot until the answer comes, but at most for three times the 80th percentile of the answering times.
After this time another call gets the slot, and the first call goes on waiting until its deadline. So an absent host
takes a slot for seconds, not for the whole timeout. The percentile grows only if more than a fifth of all hosts are
slow. At most ``LENT`` calls per slot wait without a slot, so that on a slow network the window does not ask more and
more hosts.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation.fleet.bus import Bus, Unreachable
from netspace.attestation.fleet.calls import ASK, PARTS, TELL, Again, Answer, Pace, Reply, Task
from netspace.attestation.fleet.lanes import PART_PATIENCE, WAITING, Heard, Lane, Pulse, Running

_ABSENT = "absent"
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


@dataclass
class _Message:
    """Calls that are collected for one message.

    :param due: time at which the message is sent.
    """

    function: str
    each: str
    common: Mapping[str, Any]
    due: float
    tasks: list[Running] = field(default_factory=list)


class Window:
    """Sliding window over the work for many minions; see the module."""

    def __init__(self, bus: Bus, pace: Pace, room: int = ROOM) -> None:
        slots, pulse = pace.concurrency, Pulse()
        self._bus, self._pace = bus, pace
        self._lanes = {
            ASK: Lane(slots, pace.jitter, pulse=pulse),
            _ABSENT: Lane(max(1, slots // 2), pace.jitter, pulse=pulse),
            # All hosts that send parts may be hostile at once, so this lane's patience is fixed, not measured.
            PARTS: Lane(max(1, slots // 4), 0.0, room, Pulse(PART_PATIENCE)),
            TELL: Lane(0, pace.jitter),
        }
        self._outbox: dict[tuple[str, str], _Message] = {}
        self._out: dict[tuple[str, str], Running] = {}
        self._heard: dict[tuple[str, str], Heard] = {}
        self._deadlines: list[tuple[float, int, Running, str]] = []
        self._number = itertools.count()
        self._reached = False
        self._failing: float | None = None

    def run(self, present: Iterable[Task], absent: Iterable[Task] = ()) -> None:
        """Run the work for all minions, and return when all work has ended.

        :param absent: work for minions that did not answer in the last round. This work has separate slots.
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
    def _resume(self, task: Running, answer: Answer | None) -> None:
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

    def _another(self, task: Running) -> Answer | None:
        """Return the next answer to the call that was answered last; None if no other answer has come yet."""
        heard = task.heard
        if heard is None:
            return Answer(problem="nothing was asked", silent=True)
        self._leave(task)
        heard.refused += 1
        if heard.refused > self._pace.refused:
            return Answer(problem=f"more than {self._pace.refused} answers in its name were refused", silent=True)
        if heard.replies:
            reply = heard.replies.popleft()
            return Answer(reply.value, reply.problem, self._bus.clock() - heard.sent)
        task.call, task.job, task.sent, task.until = heard.call, heard.job, heard.sent, heard.until
        self._out[task.job, task.minion] = task
        self._lane(task).lent += 1  # another call may have the slot by now
        heapq.heappush(self._deadlines, (task.until, next(self._number), task, task.job))
        return None

    def _forget(self, task: Running) -> None:
        """Drop the stored answers to the call that was answered last, and ignore later answers to it."""
        if task.heard is not None:
            self._heard.pop((task.heard.job, task.minion), None)
            task.heard = None

    def _leave(self, task: Running) -> None:
        """Give back the part of ``ROOM`` (bytes for answers in parts) that a task holds."""
        self._lanes[PARTS].held -= task.room
        task.room = 0

    def _lane(self, task: Running) -> Lane:
        return self._lanes[task.home if task.call.lane == ASK else task.call.lane]

    # -- sending ---------------------------------------------------------------------
    def _fill(self, name: str, lane: Lane, feed: Iterator[Task], now: float) -> None:
        """Give free slots to waiting tasks. If no task waits, begin the work for the next minion."""
        while lane.free():
            task = lane.next()
            if task is None and lane.coming:
                if not self._evict(lane):
                    return
            elif task is None:
                begun = next(feed, None)
                if begun is None:
                    return
                self._resume(Running(*begun, home=name), None)
            else:
                task.slot = True
                lane.slots += 1
                self._collect(task, lane, now)

    def _evict(self, lane: Lane) -> bool:
        """End the oldest call that holds room but has no slot, because other calls wait for room.

        Return whether there was such a call.
        """
        slow = [task for task in self._out.values() if task.room and not task.slot and self._lane(task) is lane]
        if not slow:
            return False
        task = min(slow, key=lambda one: one.sent)
        self._end(
            task,
            Answer(
                problem="the transfer was slow, and other hosts waited for its room",
                took=self._took(task),
                crowded=True,
            ),
        )
        return True

    def _collect(self, task: Running, lane: Lane, now: float) -> None:
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
        """Return whether the round must end: the master accepted no message yet, or none during a whole timeout.

        A round goes on if the master is busy only for a moment.
        """
        now = self._bus.clock()
        self._failing = now if self._failing is None else self._failing
        return not self._reached or now - self._failing > self._pace.timeout

    def _post(self, message: _Message, tasks: Sequence[Running]) -> None:
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
                self._end(task, Answer(problem="the master has accepted no key of this minion", silent=True))

    # -- answers and deadlines -------------------------------------------------------
    def _take(self, reply: Reply) -> None:
        """Handle an answer from the bus.

        The first answer to an open call ends the call. Later answers are kept in case the work refuses the first.
        Answers to any other call are ignored.
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
            task.heard = Heard(task.call, task.job, task.sent, task.until)
            self._heard[task.job, task.minion] = task.heard
        self._lane(task).pulse.note(took)
        self._end(task, Answer(reply.value, reply.problem, took))

    def _end(self, task: Running, answer: Answer) -> None:
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
        """Take the slots away from calls that have waited longer than the lane's patience."""
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

    def _took(self, task: Running) -> float:
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
