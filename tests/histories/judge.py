"""The judge of one link's history. Pure: notes of its two ends in, faults out.

It knows only what programs noted: the sender each message before it was sent, and what the client told about it; the
receiver each message before it was acknowledged. It also gets the number of disturbances, since the promises allow a
bounded number of repetitions for each. It knows nothing of brokers, queues or connections.

The promises, and the faults that break them:

- ``lost``: a confirmed message was never received.
- ``invented``: a message was received that was never sent, or its content is another one.
- ``denied``: a message was received of which the client had said for certain that it didn't arrive.
- ``reordered``: of two messages, the later one was received first. Only first receipts count: a repeated message comes
  after others by its nature. A receiver's silent end permits as many late messages as it may have in hand, if the
  broker delivered them before (``redelivered``) or has a second copy. A message of which an attempt failed has no place
  in the order.
- ``twice``: a program received a message twice.
- ``repeated``: a program's successor received a message again, and no reason for it is known. Known reasons are that
  the sender sent it again, or that it may have been unacknowledged when the receiver ended. Both are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

SHOWN = 10
"""The most faults of one kind that a verdict describes; it counts all."""


class Began(NamedTuple):
    """A program of the receiver began; it knows nothing of the program before it."""


class Tried(NamedTuple):
    """The sender is about to send a message."""

    number: int


class Confirmed(NamedTuple):
    """The client told that the message is safe.

    :param again: whether the client may have sent it more than once.
    """

    number: int
    again: bool


class Failed(NamedTuple):
    """The client told that the message failed.

    :param unknown: whether it may have arrived all the same.
    """

    number: int
    unknown: bool


class Received(NamedTuple):
    """The receiver got a message, and has not acknowledged it yet.

    :param redelivered: whether the broker says that it delivered the message before.
    :param intact: whether the message is exactly the one that the sender made under this number.
    """

    number: int
    redelivered: bool
    intact: bool


@dataclass(frozen=True)
class Bounds:
    """The promises in numbers, and what was done to the link.

    :param in_flight: messages that the sender may have unconfirmed.
    :param in_hand: messages that the receiver may have unacknowledged.
    :param carried: messages that a host carries at once for a buffered link.
    :param disturbed: events by which the sender, or a host that carries for it, may have lost a connection.
    :param silenced: events by which the receiver may have lost its connection without the broker's notice.
    :param ordered: whether the sender's messages have an order. Questions that are asked at once have none.
    """

    in_flight: int
    in_hand: int
    carried: int = 0
    disturbed: int = 0
    silenced: int = 0
    ordered: bool = True


@dataclass
class Verdict:
    """The judgement on one link.

    :ivar counts: messages that were ``sent``, ``confirmed``, ``received``; those received again, by reason (``sent
        again``, ``in hand``, ``carried``); ``late`` ones.
    :ivar faults: the number of faults by kind.
    :ivar shown: some of them in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def blame(self, kind: str, text: str, number: int = 1) -> None:
        self.faults[kind] += number
        if self.faults[kind] <= SHOWN or number > 1:
            self.shown.append(f"{kind}: {text}")


class _Message:
    """A message, as far as it is known.

    :ivar open: attempts that were neither refused for certain nor confirmed.
    :ivar failed: whether an attempt failed, so that a later one may come after other messages.
    :ivar seen: the receiver's program that got it last; 0: none.
    """

    __slots__ = ("again", "confirmed", "failed", "open", "seen", "tries")

    def __init__(self) -> None:
        self.tries = self.open = self.seen = 0
        self.confirmed = self.again = self.failed = False


def judge(sent: Iterable[Tried | Confirmed | Failed], received: Iterable[Began | Received], bounds: Bounds) -> Verdict:
    """Judge a link by the notes of its sender's programs and of its receiver's programs, each in the order of writing.

    A sender's number gives the order of the first attempts: a program sends 0, 1, 2, ... in this order.
    """
    verdict = Verdict()
    known = _sent(sent, verdict)
    _received(received, known, bounds, verdict)
    for number, message in known.items():
        if message.confirmed and not message.seen:
            verdict.blame("lost", f"message {number} was confirmed and never received")
    again = sum(message.again for message in known.values())
    if again > (most := bounds.in_flight * bounds.disturbed):
        verdict.blame("repeated", f"{again} messages were sent again, and {most} may be")
    verdict.counts["sent"] = len(known)
    verdict.counts["confirmed"] = sum(message.confirmed for message in known.values())
    return verdict


def _sent(notes: Iterable[Tried | Confirmed | Failed], verdict: Verdict) -> dict[int, _Message]:
    known: dict[int, _Message] = {}
    for note in notes:
        message = known.get(note.number)
        if isinstance(note, Tried):
            if message is None:
                message = known[note.number] = _Message()
            message.tries += 1
            message.open += 1
            message.again |= message.tries > 1
        elif message is None or not message.open:
            verdict.blame("invented", f"the client told the outcome of message {note.number}, which wasn't being sent")
        elif isinstance(note, Confirmed):
            message.confirmed = True
            message.again |= note.again
        else:
            message.failed = True
            message.open -= not note.unknown
    return known


def _received(notes: Iterable[Began | Received], known: dict[int, _Message], bounds: Bounds, verdict: Verdict) -> None:
    program, newest, in_hand, late, carried = 0, -1, 0, 0, 0
    for note in notes:
        if isinstance(note, Began):
            program, in_hand = program + 1, 0
            continue
        number = note.number
        message = known.get(number)
        if message is None or not note.intact:
            verdict.blame("invented", f"message {number} was received, and this message was never sent")
            continue
        verdict.counts["received"] += not message.seen
        if not message.confirmed and not message.open:
            verdict.blame("denied", f"message {number} was received, and was said not to have arrived")
        if not message.seen:
            if number < newest and bounds.ordered and not message.failed:
                excused = note.redelivered or message.again
                late += excused
                if not excused or late > bounds.silenced * bounds.in_hand:
                    verdict.blame("reordered", f"message {number} was received after message {newest}")
                verdict.counts["late"] += 1
            newest = max(newest, number)
        elif message.seen == program:
            verdict.blame("twice", f"message {number} was received twice by one program")
        elif message.again:
            verdict.counts["sent again"] += 1
        elif note.redelivered and in_hand < bounds.in_hand:
            in_hand += 1
            verdict.counts["in hand"] += 1
        elif carried < bounds.carried * bounds.disturbed:
            carried += 1
            verdict.counts["carried"] += 1
        else:
            verdict.blame("repeated", f"message {number} was received again, without a reason")
        message.seen = program
