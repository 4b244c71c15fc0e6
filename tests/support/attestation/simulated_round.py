"""Simulation of a fleet: the duration of a round, and the time at which each host is appraised.

Round and window are the library's; clock, bus and verifier are simulated. ``python
tests/support/attestation/simulated_round.py`` prints the figures in docs/attestation-fleet.md.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "_utils")]

from netspace.attestation.fleet.calls import Pace, Reply, Sent
from netspace.attestation.fleet.origin import Unproved
from netspace.attestation.fleet.rounds import Round

START = 1_800_000_000.0
# A short answer; what the simulated judge is given in the end.
ANSWER = {"boot": "b", "evidence": {}}


@dataclass(frozen=True)
class Host:
    """The behaviour of a host.

    :param seconds: seconds until the host answers a challenge; None: it never answers.
    :param parts: number of parts of the host's answer; 0: the answer comes in one message.
    :param part: seconds until each part.
    """

    seconds: float | None = 1.0
    parts: int = 0
    part: float = 0.5


AWAY = Host(None)
DRIPS = Host(0.1, 100, 59.0)
DRIPS_WELL = Host(0.1, 100, 5.9)


@dataclass
class SimulatedBus:
    """A bus whose answers come when the simulated clock reaches them."""

    hosts: Mapping[str, Host]
    now: float = 0.0
    messages: int = 0
    most: int = 0
    coming: list[tuple[float, int, Reply]] = field(default_factory=list)
    asked: set[tuple[str, str]] = field(default_factory=set)
    number: Iterator[int] = field(default_factory=itertools.count)

    def clock(self) -> float:
        return self.now

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        self.messages += 1
        job = f"{function}-{self.messages}"
        for minion in minions:
            host = self.hosts[minion]
            if host.seconds is None:
                continue
            value: Any = {"stored": True}
            seconds = host.seconds
            if function == "answer":
                self.asked.add((job, minion))
                value = head(host.parts) if host.parts else ANSWER
            elif function == "part":
                value, seconds = {"text": "1"}, host.part
            self.reply(seconds, Reply(job, minion, value))
        self.most = max(self.most, len(self.asked))
        return Sent(job)

    def reply(self, seconds: float, reply: Reply) -> None:
        heapq.heappush(self.coming, (self.now + seconds, next(self.number), reply))

    def receive(self, seconds: float) -> Reply | None:
        if self.coming and self.coming[0][0] <= self.now + seconds:
            at, _, reply = heapq.heappop(self.coming)
            self.now = max(self.now, at)
            self.asked.discard((reply.job, reply.minion))
            return reply
        self.now += seconds
        return None


def head(parts: int) -> dict[str, Any]:
    """Return the announcement of an answer in *parts*. The parts are short, since only their times matter here."""
    return {"parts": parts, "sha256": hashlib.sha256(b"1" * parts).hexdigest()}


class Judge:
    """A stand-in for the fleet's verifier. It records the time at which it appraised each host, and the answer."""

    def __init__(self, folder: Path, bus: SimulatedBus) -> None:
        self.bus = bus
        self.registrar = SimpleNamespace(folder=folder)
        self.signer = SimpleNamespace(jwk={"kty": "EC"})
        self.judged: dict[str, float] = {}
        self.answers: dict[str, list[Any]] = {}

    def certificate_due(self, minion: str, now: float) -> bool:
        return False

    def ask(self, minion: str, **_: Any) -> Any:
        return SimpleNamespace(minion=minion, wire=lambda: {"nonce": minion})

    def judge(self, asked: Any, answer: Any, now: float) -> dict[str, Any]:
        if answer in (None, {}, "VALUE_TRIMMED"):  # what anybody may say
            raise Unproved("[malformed]")
        self.judged[asked.minion] = now - START
        self.answers.setdefault(asked.minion, []).append(answer)
        return {"token": "t"}

    def standing(self, minion: str, now: float, record: Any = None) -> Any:
        return SimpleNamespace(shown=lambda now: {"state": "trusted" if record else "unknown"})


@dataclass(frozen=True)
class Outcome:
    """The figures of a round.

    :param took: the round's duration in seconds.
    :param judged: the time at which each host was appraised, in seconds from the round's beginning.
    :param found: the summary of each host.
    :param messages: the number of messages that the master published.
    """

    took: float
    judged: Mapping[str, float]
    answers: Mapping[str, list[Any]]
    found: Mapping[str, Any]
    messages: int
    most: int


def round_of(
    hosts: Mapping[str, Host],
    folder: Path,
    pace: Pace | None = None,
    bus: SimulatedBus | None = None,
    connected: Collection[str] = (),
) -> Outcome:
    """Attest *hosts*. The data that one round keeps for the next is in *folder*.

    :param connected: the hosts that Salt sees connected.
    """
    bus = SimulatedBus(hosts) if bus is None else bus
    judge: Any = Judge(folder, bus)
    ready: Any = None  # no certificate is due
    turn = Round(judge, ready, lambda standing: None, wall=lambda: START + bus.now)
    found = turn.run(list(hosts), bus, pace or Pace(), connected)
    return Outcome(bus.now, judge.judged, judge.answers, found, bus.messages, bus.most)


def fleet(
    number: int, away: int = 0, drips: int = 0, drip: Host = DRIPS, seconds: float | None = None
) -> dict[str, Host]:
    """Return a fleet whose good hosts answer within half a second to three seconds, or after *seconds*.

    :param away: number of hosts that never answer.
    :param drips: number of hosts that behave like *drip*.
    """
    rng = random.Random(1)
    hosts = {f"m{one}": Host(rng.uniform(0.5, 3.0) if seconds is None else seconds) for one in range(number)}
    bad = rng.sample(sorted(hosts), away + drips)
    hosts.update(dict.fromkeys(bad[:away], AWAY))
    hosts.update(dict.fromkeys(bad[away:], drip))
    return hosts


def good(hosts: Mapping[str, Host]) -> set[str]:
    return {name for name, host in hosts.items() if host.seconds is not None and host.parts <= 20}


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


CASES = (
    (320, 10, 0, DRIPS),
    (1000, 50, 0, DRIPS),
    (1000, 0, 12, DRIPS),
    (10_000, 100, 0, DRIPS),
    (10_000, 300, 0, DRIPS),
    (10_000, 500, 0, DRIPS),
    (10_000, 0, 20, DRIPS),
    (10_000, 500, 20, DRIPS),
    (10_000, 500, 20, DRIPS_WELL),
)


def table() -> list[dict[str, Any]]:
    """Return three figures for each case: its first round, the next round, and a round without the bad hosts."""
    lines = []
    for seconds in (None, 0.0):
        for number, away, drips, drip in CASES:
            random.seed(3)
            hosts = fleet(number, away, drips, drip, seconds)
            with folder() as here:
                first, second = round_of(hosts, here), round_of(hosts, here)
            with folder() as here:
                present = {name for name, host in hosts.items() if host.seconds is not None}
                seen = round_of(hosts, here, connected=present)
            with folder() as other:
                without = round_of({name: hosts[name] for name in good(hosts)}, other)
            lines.append({
                "hosts": number, "away": away, "drip": drips, "each_part": drip.part if drips else None,
                "answer_after": seconds, "first_s": round(first.took), "first_seen_s": round(seen.took),
                "second_s": round(second.took),
                "without_s": round(without.took), "ratio": round(second.took / without.took, 2),
                "last_good_judged_s": round(max(second.judged[name] for name in good(hosts))),
                "late": sum(second.judged[name] > 7200 for name in good(hosts)),
                "messages": second.messages, "most_at_once": second.most,
            })  # fmt: skip
    return lines


if __name__ == "__main__":
    for one in table():
        print(json.dumps(one))
