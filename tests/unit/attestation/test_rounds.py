"""Rounds: an absent, slow or hostile host delays no other host, and its late or forged answers don't count.

The fleets are simulated (tests/support/attestation/simulated_round.py): the library's round and window, with a clock
that the test advances.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import sampling
from support.attestation.simulated_round import (
    ANSWER,
    AWAY,
    DRIPS,
    DRIPS_WELL,
    START,
    Host,
    SimulatedBus,
    fleet,
    folder,
    good,
    round_of,
)

from netspace.attestation.fleet import calls, rounds, window
from netspace.attestation.fleet.bus import Unreachable
from netspace.attestation.fleet.calls import Answer, Call, Pace, Reply, Sent
from netspace.attestation.fleet.window import Window

DEADLINE = 7200


BAD = {"drips": (DRIPS, None), "drips-within-bounds": (DRIPS_WELL, None), "answers-at-once": (DRIPS, 0.0)}


@pytest.mark.parametrize("bad", sampling.todays(list(BAD), 3))
def test_500_away_and_20_that_drip_delay_no_good_host(bad: str, tmp_path: Path) -> None:
    drip, seconds = BAD[bad]
    random.seed(3)
    hosts = fleet(10_000, 500, 20, drip, seconds)
    first = round_of(hosts, tmp_path)
    second = round_of(hosts, tmp_path)
    with folder() as other:
        without = round_of({name: hosts[name] for name in good(hosts)}, other)
    for found in (first, second):
        assert good(hosts) <= set(found.judged)
        late = [name for name in good(hosts) if found.judged[name] > DEADLINE]
        assert not late and max(found.judged[name] for name in good(hosts)) < 1.3 * without.took
        assert all(found.found[name]["answered"] for name in good(hosts))
    assert second.took < 1.3 * without.took
    # In the first round a bad host may be the last that is asked. Nobody but it is waited for then: for one timeout,
    # a tenth more for the part that it sent, or ten timeouts if it sends all parts within bounds.
    last = max(first.judged[name] for name in good(hosts))
    assert first.took < last + (10 * 60 if drip is DRIPS_WELL else 1.1 * 60) + 2
    assert second.messages < 10_000 / 2 and second.most <= 32 + 32 // 2


LATE = Host(61.0)
LARGE = Host(0.5, 20, 0.5)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([AWAY, DRIPS, DRIPS_WELL, LATE, LARGE]), max_size=40), st.integers(0, 2**32))
def test_no_mix_of_hosts_delays_a_good_one(bad: list[Host], seed: int) -> None:
    random.seed(seed)
    hosts = {f"good{one}": Host(random.uniform(0.5, 3.0)) for one in range(200)}
    others = {f"bad{one}": host for one, host in enumerate(bad)}
    with folder() as one, folder() as other:
        without = round_of(hosts, one)
        first = round_of({**hosts, **others}, other)
        second = round_of({**hosts, **others}, other)
    for found in (first, second):
        assert set(hosts) <= set(found.judged)
        # However many are away, each of them has a slot for some seconds, and no good host waits for a timeout.
        assert max(found.judged[name] for name in hosts) < 1.3 * without.took + 12 * len(bad) / 32 + 5
        assert found.took < without.took + 12 * len(bad) / 16 + 60 + 610
        for name, host in others.items():
            answered = found.found[name]["answered"]
            assert answered == (host.parts > 0 and host is not DRIPS), (name, host, found.found[name])
    assert max(second.judged[name] for name in hosts) < 1.3 * without.took + 5


def test_a_whole_fleet_that_is_away_ends_and_comes_back(tmp_path: Path) -> None:
    hosts = dict.fromkeys((f"m{one}" for one in range(2000)), AWAY)
    found = round_of(hosts, tmp_path)
    assert not found.judged and all("did not answer within 60 s" in one["answer"] for one in found.found.values())
    assert found.took < 1100
    # They are back: those who did not answer the last time are no slower than others.
    back = dict.fromkeys(hosts, Host(1.0))
    assert round_of(back, tmp_path).took < 120 and not rounds.doubtful(tmp_path, back)


def test_slow_hosts_are_judged_though_they_lost_their_slots(tmp_path: Path) -> None:
    hosts = {f"m{one}": Host(0.5 if one % 10 else 45.0) for one in range(500)}
    found = round_of(hosts, tmp_path)
    assert set(found.judged) == set(hosts) and found.took < 120


def test_a_fleet_that_is_slow_as_a_whole_keeps_its_slots(tmp_path: Path) -> None:
    """In a fleet whose answers all take 20 s, no host loses its slot, and all are appraised."""
    hosts = {f"m{one}": Host(20.0) for one in range(600)}
    found = round_of(hosts, tmp_path)
    assert set(found.judged) == set(hosts)
    assert found.most <= 4 * 32, "at first nobody knows that 20 s are usual here"


# -- what a minion may try ----------------------------------------------------------------
class Hostile(SimulatedBus):
    """A bus on which ``evil`` sends more than the requested answer."""

    extra: Any = None

    def send(self, minions: Any, function: str, arguments: Any) -> Any:
        sent = super().send(minions, function, arguments)
        if function == "answer" and self.extra:
            self.extra(self, sent.job, list(minions))
        return sent


def attacked(extra: Any, hosts: dict[str, Host], here: Path) -> Any:
    bus = Hostile(hosts)
    bus.extra = extra
    return round_of(hosts, here, Pace(8, 0.0, 60.0), bus)


FEW = {f"web{one}": Host(1.0) for one in range(8)}


def test_an_answer_for_who_was_not_asked_is_nobodys(tmp_path: Path) -> None:
    def extra(bus: Hostile, job: str, asked: list[str]) -> None:
        bus.reply(0.1, Reply(job, "web-other", {"forged": 1}))
        bus.reply(0.1, Reply("20300101000000000000", "web1", {"forged": 1}))
        bus.reply(0.1, Reply("", "web1", {"forged": 1}))

    found = attacked(extra, FEW, tmp_path)
    assert set(found.judged) == set(FEW)
    assert all(answers == [ANSWER] for answers in found.answers.values())


def test_a_second_answer_is_not_taken(tmp_path: Path) -> None:
    def extra(bus: Hostile, job: str, asked: list[str]) -> None:
        for later in (1.1, 1.2, 2.0):
            bus.reply(later, Reply(job, "web1", {"second": 1}))

    found = attacked(extra, FEW, tmp_path)
    assert found.answers["web1"] == [ANSWER]


# What anybody may send in a host's name, before the host's own answer is there.
FORGERIES = [
    Reply("", "", {}),
    Reply("", "", None),
    Reply("", "", None, problem="the TPM can't be used"),
    Reply("", "", {"parts": 1, "sha256": "00" * 32}),
    Reply("", "", {"parts": 10**9, "sha256": "00" * 32}),
    Reply("", "", "VALUE_TRIMMED"),
]


@pytest.mark.parametrize("hosts", [FEW, {**FEW, "web1": Host(20.0)}, {**FEW, "web1": Host(1.0, 3, 0.5)}])
@pytest.mark.parametrize("forged", FORGERIES)
def test_who_answers_in_anothers_name_is_passed_over(tmp_path: Path, forged: Reply, hosts: dict[str, Host]) -> None:
    """Answers that another minion sends in a host's name are skipped, and the host's own answer is awaited."""

    def extra(bus: Hostile, job: str, asked: list[str]) -> None:
        for name in asked:
            for _ in range(5):
                bus.reply(0.1, dataclasses.replace(forged, job=job, minion=name))

    found = attacked(extra, hosts, tmp_path)
    assert set(found.judged) == set(hosts), found.found
    assert all(one["answered"] and one["state"] == "trusted" for one in found.found.values())
    assert all(answers == [ANSWER] for name, answers in found.answers.items() if not hosts[name].parts)


@pytest.mark.parametrize("number", [1, Pace.refused - 1, Pace.refused + 1, 1000])
def test_a_flood_in_anothers_name_costs_that_host_its_turn(tmp_path: Path, number: int) -> None:
    """A flood of answers in a host's name ends the host's turn; the report mentions it, and others don't wait."""

    def extra(bus: Hostile, job: str, asked: list[str]) -> None:
        for _ in range(number if "web1" in asked else 0):
            bus.reply(0.1, Reply(job, "web1", {}))

    found = attacked(extra, FEW, tmp_path)
    assert set(FEW) - {"web1"} <= set(found.judged) and found.took < 70
    assert ("web1" in found.judged) == (number < Pace.refused)
    if number > Pace.refused:
        assert found.found["web1"]["answer"].endswith("[malformed]") and not found.found["web1"]["answered"]


def test_what_only_others_said_is_no_answer(tmp_path: Path) -> None:
    def extra(bus: Hostile, job: str, asked: list[str]) -> None:
        if "web1" in asked:
            bus.reply(0.1, Reply(job, "web1", {}))

    found = attacked(extra, {**FEW, "web1": AWAY}, tmp_path)
    assert "web1" not in found.judged and 60 < found.took < 70
    assert (found.found["web1"]["answered"], found.found["web1"]["state"]) == (False, "unknown")


def test_an_answer_after_its_deadline_is_not_taken(tmp_path: Path) -> None:
    hosts = {**FEW, "web1": Host(60.5), "web2": Host(None), "other": Host(0.1, 60, 5.0)}
    found = attacked(None, hosts, tmp_path)
    assert found.took > 61, "the round was still there when it came"
    assert "web1" not in found.judged and not found.found["web1"]["answered"]
    assert found.found["web1"]["answer"] == "did not answer within 60 s"


def test_parts_that_are_none_are_no_answer(tmp_path: Path) -> None:
    class Bad(SimulatedBus):
        def reply(self, seconds: float, reply: Reply) -> None:
            wrong = {"web1": {"text": 7}, "web2": {"text": "x" * 10**6}, "web3": "VALUE_TRIMMED", "web4": {"text": "y"}}
            if reply.job.startswith("part") and reply.minion in wrong:
                reply = Reply(reply.job, reply.minion, wrong[reply.minion])
            super().reply(seconds, reply)

    hosts = {f"web{one}": Host(0.5, 3, 0.5) for one in range(1, 5)}
    found = round_of(hosts, tmp_path, bus=Bad(hosts))
    assert not found.answers
    assert all(one["answer"].endswith("[malformed]") and not one["answered"] for one in found.found.values())


def test_parts_in_another_order_are_no_answer(tmp_path: Path) -> None:
    """A minion sends part 1 of its answer as part 0; the answer differs from the announced digest, and is refused."""
    cut = ['{"boot": "b", "ev', 'idence": {}}']
    digest = hashlib.sha256("".join(cut).encode()).hexdigest()

    class Cut(SimulatedBus):
        swapped = False

        def send(self, minions: Any, function: str, arguments: Any) -> Any:
            job = f"{function}-{next(self.number)}"
            replies = {"answer": {"parts": 2, "sha256": digest}, "accept": {"stored": True}}
            if function == "part":
                replies["part"] = {"text": cut[arguments["parts"]["web1"] ^ self.swapped]}
            self.reply(0.1, Reply(job, "web1", replies[function]))
            return Sent(job)

    hosts = {"web1": Host()}
    bus = Cut(hosts)
    assert round_of(hosts, tmp_path, bus=bus).answers["web1"] == [{"boot": "b", "evidence": {}}]
    bus = Cut(hosts)
    bus.swapped = True
    assert not round_of(hosts, tmp_path, bus=bus).answers


def test_a_flood_of_events_does_not_keep_deadlines_open(tmp_path: Path) -> None:
    class Flood(SimulatedBus):
        def receive(self, seconds: float) -> Reply | None:
            self.now += 0.001
            return super().receive(0) or Reply("answer-1", "evil", {})

    hosts = {"web1": Host(1.0), "web2": AWAY}
    found = round_of(hosts, tmp_path, bus=Flood(hosts))
    assert set(found.judged) == {"web1"} and 60 < found.took < 60 + 3 * window.BEHIND


def test_a_master_that_reads_late_calls_no_host_late(tmp_path: Path) -> None:
    """Answers count by their arrival, although each appraisal takes time and the master reads answers late."""
    hosts = {f"m{one}": Host(58.0) for one in range(32)}

    class Slow(SimulatedBus):
        def receive(self, seconds: float) -> Reply | None:
            reply = super().receive(seconds)
            self.now += 0.1 * (reply is not None)
            return reply

    assert set(round_of(hosts, tmp_path, bus=Slow(hosts)).judged) == set(hosts)


class Busy(SimulatedBus):
    """A bus whose master publishes no message between two times."""

    since, until = 3.0, 40.0

    def send(self, minions: Any, function: str, arguments: Any) -> Any:
        if self.since <= self.now < self.until:
            self.now += 5
            raise Unreachable("timed out")
        return super().send(minions, function, arguments)


def test_a_master_that_is_busy_for_a_while_ends_no_round(tmp_path: Path) -> None:
    hosts = {f"web{one}": Host(1.0) for one in range(200)}
    bus = Busy(hosts)
    found = round_of(hosts, tmp_path, bus=bus)
    assert set(found.judged) == set(hosts) and found.took < 90
    assert all(one["enforced"] for one in found.found.values())


def test_a_master_that_blocks_calls_no_host_late(tmp_path: Path) -> None:
    """Answers count by their arrival, although the master takes a minute to publish each message."""

    class Blocks(SimulatedBus):
        def send(self, minions: Any, function: str, arguments: Any) -> Any:
            sent = super().send(minions, function, arguments)
            self.now += 100 * (self.messages == 2)
            return sent

    hosts = {f"web{one}": Host(30.0) for one in range(40)}
    found = round_of(hosts, tmp_path, bus=Blocks(hosts))
    assert set(found.judged) == set(hosts) and found.messages > 2


@pytest.mark.parametrize(("since", "most"), [(0.0, 10.0), (3.0, 80.0)], ids=["from-the-beginning", "for-good"])
def test_a_master_that_is_gone_is_an_error(tmp_path: Path, since: float, most: float) -> None:
    bus = Busy({f"web{one}": Host(1.0) for one in range(200)})
    bus.since, bus.until = since, 1e9
    with pytest.raises(Unreachable):
        round_of(bus.hosts, tmp_path, bus=bus)
    assert bus.now < most


def test_slow_parts_give_their_room_to_those_who_wait() -> None:
    """With memory for only one answer, a host that sends its parts too slowly gives it up to waiting hosts."""
    ended: list[tuple[str, bool]] = []

    def work(name: str) -> calls.Work:
        came = yield Call("part", "parts", 0, lane=calls.PARTS, size=100)
        if came.crowded:
            came = yield Call("part", "parts", 0, lane=calls.PARTS, size=100)
        ended.append((name, not came.problem))

    hosts = {"drip": Host(0.1, 1, 59.0), **{f"web{one}": Host(0.1, 1, 0.5) for one in range(5)}}
    bus = SimulatedBus(hosts)
    Window(bus, Pace(), room=100).run((name, work(name)) for name in hosts)
    assert [name for name, _ in ended] == ["web0", "web1", "web2", "web3", "web4", "drip"]
    assert all(good for _, good in ended) and bus.now < 70


def test_more_than_the_room_is_never_held() -> None:
    held: list[int] = []

    def work() -> calls.Work:
        for _ in range(3):
            yield Call("part", "parts", 0, lane=calls.PARTS, size=40)
            held.append(made._lanes[calls.PARTS].held)

    hosts = {f"web{one}": Host(0.1, 1, 0.5) for one in range(20)}
    made = Window(SimulatedBus(hosts), Pace(), room=100)
    made.run((name, work()) for name in hosts)
    assert len(held) == 60 and max(held) == 80 and made._lanes[calls.PARTS].held == 0


def test_calls_with_other_common_arguments_go_by_another_message() -> None:
    sent: list[tuple[str, dict[str, Any]]] = []

    class Seen(SimulatedBus):
        def send(self, minions: Any, function: str, arguments: Any) -> Any:
            sent.append((",".join(minions), dict(arguments)))
            return super().send(minions, function, arguments)

    def work(template: str) -> calls.Work:
        yield Call("enroll", common={"template": template})

    Window(Seen(FEW), Pace()).run([("web1", work("a")), ("web2", work("b")), ("web3", work("a"))])
    assert sorted(sent) == [("web1,web3", {"template": "a"}), ("web2", {"template": "b"})]


def test_minions_without_an_accepted_key_are_not_waited_for() -> None:
    came: list[Answer] = []

    class Unknown(SimulatedBus):
        def send(self, minions: Any, function: str, arguments: Any) -> Any:
            sent = super().send([one for one in minions if one != "gone"], function, arguments)
            return type(sent)(sent.job, frozenset({"gone"}))

    def work() -> calls.Work:
        came.append((yield Call("answer", "challenges", {})))

    bus = Unknown({**FEW, "gone": AWAY})
    Window(bus, Pace()).run([("gone", work()), ("web1", work())])
    assert bus.now < 5 and [one.problem for one in came] == ["the master has accepted no key of this minion", ""]


# -- what is kept for the next round ------------------------------------------------------
WEB = ("web1", "web2", "web3")


def test_who_was_silent_is_remembered_until_he_answers(tmp_path: Path) -> None:
    round_of({"web1": AWAY, "web2": Host(), "web3": AWAY}, tmp_path)
    assert rounds.doubtful(tmp_path, WEB) == {"web1", "web3"}
    round_of({"web1": Host()}, tmp_path)
    assert rounds.doubtful(tmp_path, WEB) == {"web3"}, "a round over some says nothing of the others"


def test_who_is_seen_again_is_asked_as_all_others(tmp_path: Path) -> None:
    hosts = {f"web{one}": Host() for one in range(8)}
    one = Pace(1, 0.0, 60.0)
    round_of({"web1": AWAY, "web2": AWAY}, tmp_path)
    assert round_of(hosts, tmp_path, one).most == 2, "beside the others, in a slot of their own"
    round_of({"web1": AWAY, "web2": AWAY}, tmp_path)
    assert round_of(hosts, tmp_path, one, connected={"web1", "web2"}).most == 1


def test_first_round_asks_those_that_are_connected_first(tmp_path: Path) -> None:
    """Connected hosts are asked before absent ones, so that absent hosts don't delay the round.

    Hosts answer at once here, so that each second of delay shows.
    """
    hosts = fleet(2000, away=100, seconds=0.0)
    present = {name for name, host in hosts.items() if host.seconds is not None}
    without = round_of({name: hosts[name] for name in present}, tmp_path / "without")
    seen = round_of(hosts, tmp_path / "seen", connected=present)
    assert max(seen.judged[name] for name in present) < 1.3 * without.took
    assert set(seen.judged) == present
    blind = round_of(hosts, tmp_path / "blind")
    assert set(blind.judged) == present, "a master that sees nobody asks all"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"absent": ["web1"], "rounds": [[1, 2]]}', '{"absent": [1], "slow": [], "rounds": [[1, 2]]}',
     '{"absent": ["web1"], "slow": 1, "rounds": [[1, 2]]}', '{"absent": ["web1"], "slow": [], "rounds": [[1]]}',
     '{"absent": ["web1"], "slow": [], "rounds": 1}', '{"absent": ["web1"], "slow": [], "rounds": [["1", 2]]}',
     '{"absent": ["web1"], "slow": [], "rounds": [[true, 2]]}'],
)  # fmt: skip
def test_a_damaged_memory_of_rounds_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds.json").write_text(text)
    assert rounds.doubtful(tmp_path, WEB) == set(WEB) and rounds.deadline(tmp_path, START) == DEADLINE
    found = round_of({"web1": Host(), "web2": AWAY}, tmp_path)
    assert set(found.judged) == {"web1"} and rounds.doubtful(tmp_path, WEB) == {"web2"}


def test_the_deadline_follows_the_longest_round_of_a_day(tmp_path: Path) -> None:
    def note(took: float, now: float) -> None:
        rounds._remember(tmp_path, [], rounds._Last(rounds=((now, took),)))

    note(600, START)
    assert rounds.deadline(tmp_path, START) == DEADLINE, "never shorter than what the page says"
    note(4000, START + 4000)
    note(10, START + 4100)
    assert rounds.deadline(tmp_path, START + 4100) == 12_000
    assert rounds.deadline(tmp_path, START + 4100 + 86_400) == DEADLINE, "a day later it is forgotten"
    note(10**6, START + 20_000)
    assert rounds.deadline(tmp_path, START + 20_000) == rounds.MOST
    assert rounds.deadline(tmp_path, START - 10) == DEADLINE, "a clock that was set back makes nothing longer"
