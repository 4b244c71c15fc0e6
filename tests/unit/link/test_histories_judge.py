"""The judge of histories: it finds nothing in histories as promised, and each planted fault.

Honest histories come from a model of a queue with delivery at least once: senders repeat what wasn't confirmed,
receivers die, and what they had in hand comes again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from histories import faults, notes
from histories.faults import Target
from histories.judge import SHOWN, Began, Bounds, Confirmed, Failed, Received, Tried, Verdict, judge
from hypothesis import given
from hypothesis import strategies as st

Sent = list[Tried | Confirmed | Failed]
Got = list[Began | Received]
WINDOW, HAND = 5, 4


class Model:
    """A link: a sender, a queue with delivery at least once, a receiver, and what happens to them by chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.sent: Sent = []
        self.got: Got = [Began()]
        self.queue: list[tuple[int, bool]] = []
        self.hand: list[tuple[int, bool]] = []
        self.known: set[int] = set()
        self.noted: set[int] = set()
        self.following = self.disturbed = self.silenced = 0

    @property
    def bounds(self) -> Bounds:
        return Bounds(WINDOW, HAND, disturbed=self.disturbed, silenced=self.silenced)

    def run(self, steps: int) -> None:
        actions: list[Callable[[], None]] = [self.send, self.send, self.read, self.read]
        actions += [self.send_again, self.successor, self.doubt, self.refuse, self.die, self.silence]
        for _ in range(steps):
            self.chance.choice(actions)()
        while self.queue or self.hand:
            self.read()

    def _new(self) -> list[int]:
        numbers = list(range(self.following, self.following + self.chance.randint(1, WINDOW)))
        self.following = numbers[-1] + 1
        self.sent += map(Tried, numbers)
        return numbers

    def _arrive(self, numbers: list[int]) -> None:
        self.queue += [(number, False) for number in numbers]

    def send(self) -> None:
        self._arrive(numbers := self._new())
        self.sent += [Confirmed(number, False) for number in numbers]

    def send_again(self) -> None:
        """Lose the connection before the confirmations: the client sends all again."""
        numbers = self._new()
        self._arrive(numbers[: self.chance.randint(0, len(numbers))])
        self._arrive(numbers)
        self.disturbed += 1
        self.sent += [Confirmed(number, True) for number in numbers]

    def successor(self) -> None:
        """Kill the sender: its successor tries again what wasn't confirmed."""
        numbers = self._new()
        self._arrive(numbers[: self.chance.randint(0, len(numbers))])
        self.disturbed += 1
        self.sent += map(Tried, numbers)
        self._arrive(numbers)
        self.sent += [Confirmed(number, False) for number in numbers]

    def doubt(self) -> None:
        numbers = self._new()
        self._arrive(numbers[: self.chance.randint(0, len(numbers))])
        self.sent += [Failed(number, True) for number in numbers]

    def refuse(self) -> None:
        self.sent += [Failed(number, False) for number in self._new()]

    def read(self) -> None:
        while self.queue and len(self.hand) < HAND:
            self.hand.append(self.queue.pop(0))
        for _ in range(self.chance.randint(1, HAND)):
            if self.hand:
                self._take(*self.hand[0])
                del self.hand[0]

    def _take(self, number: int, redelivered: bool) -> None:
        if number not in self.known:
            self.got.append(Received(number, redelivered, True))
            self.noted.add(number)
            self.known.add(number)

    def die(self) -> None:
        """Kill the receiver, perhaps after a note and before its acknowledgement."""
        if self.hand and self.chance.random() < 0.5:
            self._take(*self.hand[0])
        self.queue[:0] = [(number, True) for number, _ in self.hand]
        self.hand, self.known = [], set()
        self.got.append(Began())

    def silence(self) -> None:
        """End the receiver's connection without the broker's notice: what it had in hand comes after other messages."""
        place = self.chance.randint(0, len(self.queue))
        self.queue[place:place] = [(number, True) for number, _ in self.hand]
        self.hand = []
        self.silenced += 1


def history(seed: int, steps: int = 60) -> Model:
    model = Model(random.Random(seed))
    model.run(steps)
    return model


def judged(model: Model) -> Verdict:
    return judge(model.sent, model.got, model.bounds)


SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_history_as_promised_has_no_fault(seed: int) -> None:
    model = history(seed)
    verdict = judged(model)
    assert not verdict.faults, verdict.shown
    assert verdict.counts["received"] == len(model.noted)
    assert verdict.counts["confirmed"] == sum(isinstance(note, Confirmed) for note in model.sent)


def receipts(model: Model) -> list[int]:
    """Return the places of first receipts, in the receiver's notes."""
    seen: set[int] = set()
    places = []
    for place, note in enumerate(model.got):
        if isinstance(note, Received) and note.number not in seen:
            seen.add(note.number)
            places.append(place)
    return places


# -- each fault, planted ---------------------------------------------------------------------------
def confirmed(model: Model) -> list[int]:
    return [note.number for note in model.sent if isinstance(note, Confirmed)]


def lose(model: Model) -> bool:
    """Take all receipts of one confirmed message away."""
    numbers = confirmed(model)
    if not numbers:
        return False
    gone = model.chance.choice(numbers)
    model.got = [note for note in model.got if isinstance(note, Began) or note.number != gone]
    return True


def invent(model: Model) -> bool:
    model.got.append(Received(model.following + model.chance.randint(0, 3), False, True))
    return True


def spoil(model: Model) -> bool:
    """Change the content of one message."""
    places = receipts(model)
    if not places:
        return False
    place = model.chance.choice(places)
    note = model.got[place]
    assert isinstance(note, Received)
    model.got[place] = note._replace(intact=False)
    return True


def deny(model: Model) -> bool:
    """Have a message arrive that was said not to."""
    refused = {note.number for note in model.sent if isinstance(note, Failed) and not note.unknown}
    if not refused:
        return False
    model.got.append(Received(max(refused), False, True))
    return True


def reorder(model: Model) -> bool:
    """Exchange two messages that no silent end excuses."""
    model.silenced = 0
    failed = {note.number for note in model.sent if isinstance(note, Failed)}
    places = [place for place in receipts(model) if model.got[place].number not in failed]  # type: ignore[union-attr]
    if len(places) < 2:
        return False
    one = model.chance.randrange(len(places) - 1)
    here, there = places[one], places[one + 1]
    model.got[here], model.got[there] = model.got[there], model.got[here]
    return True


def reorder_too_many(model: Model) -> bool:
    """Have more messages come late than a receiver has in hand."""
    model.silenced = 1
    more = range(model.following, model.following + HAND + 2)
    model.sent += [note for number in more for note in (Tried(number), Confirmed(number, False))]
    model.got.append(Received(more[-1], False, True))
    model.got += [Received(number, True, True) for number in more[:-1]]
    return True


def reorder_undelivered(model: Model) -> bool:
    """Have a message come late that the broker had not delivered before."""
    model.silenced = 1
    number = model.following
    model.sent += [Tried(number), Tried(number + 1), Confirmed(number, False), Confirmed(number + 1, False)]
    model.got += [Received(number + 1, False, True), Received(number, False, True)]
    return True


def give_twice(model: Model) -> bool:
    """Give one program a message twice."""
    places = receipts(model)
    if not places:
        return False
    place = model.chance.choice(places)
    model.got.insert(place + 1, model.got[place])
    return True


def repeat(model: Model) -> bool:
    """Give a successor a message that its sender sent once and its former reader had settled."""
    number = model.following
    model.sent += [Tried(number), Confirmed(number, False)]
    model.got += [Received(number, False, True), Began(), Received(number, False, True)]
    return True


def repeat_too_many(model: Model) -> bool:
    """Give a successor more messages again than its predecessor can have had in hand."""
    more = range(model.following, model.following + HAND + 1)
    model.sent += [note for number in more for note in (Tried(number), Confirmed(number, False))]
    model.got += [Received(number, False, True) for number in more]
    model.got += [Began(), *(Received(number, True, True) for number in more)]
    return True


def send_too_many_again(model: Model) -> bool:
    """Have the client send messages again more often than disturbances permit."""
    more = range(model.following, model.following + WINDOW * model.disturbed + 1)
    model.sent += [note for number in more for note in (Tried(number), Confirmed(number, True))]
    model.got += [Received(number, False, True) for number in more]
    return True


def tell_of_nothing(model: Model) -> bool:
    model.sent.append(Confirmed(model.following, False))
    return True


PLANTS = {
    lose: "lost",
    invent: "invented",
    spoil: "invented",
    tell_of_nothing: "invented",
    deny: "denied",
    reorder: "reordered",
    reorder_too_many: "reordered",
    reorder_undelivered: "reordered",
    give_twice: "twice",
    repeat: "repeated",
    repeat_too_many: "repeated",
    send_too_many_again: "repeated",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@given(seed=SEEDS)
def test_planted_fault_is_found(plant: Callable[[Model], bool], seed: int) -> None:
    model = history(seed)
    if plant(model):
        verdict = judged(model)
        assert verdict.faults[PLANTS[plant]], verdict
        assert any(PLANTS[plant] in text for text in verdict.shown)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_fault_can_be_planted_into_most_histories(plant: Callable[[Model], bool]) -> None:
    assert sum(plant(history(seed)) for seed in range(40)) >= 30


def test_carrier_repeats_no_more_than_it_carries() -> None:
    sent: Sent = [note for number in range(3) for note in (Tried(number), Confirmed(number, False))]
    got: Got = [Began(), *(Received(number, False, True) for number in range(3)), Began()]
    again: Got = [Received(number, False, True) for number in range(3)]
    bounds = Bounds(WINDOW, HAND, carried=2, disturbed=1)
    assert not judge(sent, got + again[:2], bounds).faults
    assert judge(sent, got + again, bounds).faults == {"repeated": 1}
    assert judge(sent, got + again[:1], replace(bounds, disturbed=0)).faults == {"repeated": 1}


def test_message_that_failed_and_is_tried_again_has_no_place() -> None:
    sent: Sent = [Tried(0), Failed(0, False), Tried(1), Confirmed(1, False), Tried(0), Confirmed(0, False)]
    got: Got = [Began(), Received(1, False, True), Received(0, False, True)]
    assert not judge(sent, got, Bounds(WINDOW, HAND, disturbed=1)).faults


def test_verdict_counts_all_faults_and_describes_some() -> None:
    sent: Sent = [note for number in range(100) for note in (Tried(number), Confirmed(number, False))]
    verdict = judge(sent, [], Bounds(WINDOW, HAND))
    assert verdict.faults == {"lost": 100}
    assert len(verdict.shown) == SHOWN


# -- notes and disturbances -----------------------------------------------------------------------
def test_notes_are_read_as_written(tmp_path: Path) -> None:
    sender, receiver = notes.Notes(tmp_path / "sender"), notes.Notes(tmp_path / "receiver")
    sender.tried(0)
    sender.tried(1)
    sender.tried(2)
    sender.told([Confirmed(0, True), Failed(1, True)])
    assert notes.left(tmp_path / "sender") == ([2], 3)
    told = [Tried(0), Tried(1), Tried(2), Confirmed(0, True), Failed(1, True)]
    assert list(notes.sent(tmp_path / "sender")) == told
    receiver.began()
    receiver.received("web>orders", 0, redelivered=True, intact=True)
    receiver.received("till>orders", 5, redelivered=False, intact=False)
    assert list(notes.received(tmp_path / "receiver", "web>orders")) == [Began(), Received(0, True, True)]
    assert list(notes.received(tmp_path / "receiver", "till>orders")) == [Began(), Received(5, False, False)]
    assert notes.strangers(tmp_path / "receiver", ["web>orders"]) == 1
    assert notes.left(tmp_path / "nobody") == ([], 0)


@given(st.integers(0, 10**9), st.binary(max_size=200))
def test_body_proves_its_link_and_number(number: int, other: bytes) -> None:
    body = notes.body("web>orders", number)
    assert notes.named(body) == ("web>orders", number, True)
    assert not notes.named(body + b"x")[2]
    assert not notes.named(body[:-1])[2]
    assert not notes.named(other)[2]


def test_disturbances_follow_from_the_seed() -> None:
    targets = [Target("broker", "h1"), Target("client", "web"), Target("cable", ""), Target("lo", "web")]

    def first(seed: int) -> list[faults.Disturbance]:
        drawn = faults.schedule(seed, targets, 2.0)
        return [next(drawn) for _ in range(300)]

    assert first(1) == first(1) != first(2)
    assert {one.target for one in first(1)} == set(targets)
    assert {(one.target.kind, one.how) for one in first(1)} == {
        *(("broker", how) for how in ("kill", "pause")),
        *(("client", how) for how in ("kill", "pause")),
        *(("cable", "cut"), ("lo", "cut")),
    }
    assert all(0 < one.seconds <= faults.KINDS[one.how] for one in first(1) if one.how != "kill")
