"""Answers in parts: their size, their time, and the master's cost of reading them."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Generator
from typing import Any

import pytest

from netspace.attestation.evidence import PART
from netspace.attestation.fleet import transfer
from netspace.attestation.fleet.calls import Answer, Call
from netspace.attestation.refusals import Malformed

MIB = 1024 * 1024


def cut(value: Any, size: int = 10) -> tuple[dict[str, Any], list[dict[str, str]]]:
    text = json.dumps(value)
    parts = [{"text": text[at : at + size]} for at in range(0, len(text), size)]
    return {"parts": len(parts), "sha256": hashlib.sha256(text.encode()).hexdigest()}, parts


def test_parts_are_put_together_again() -> None:
    head, parts = cut({"boot": "b" * 50})
    coming = transfer.Parts(head)
    for number, one in enumerate(parts):
        assert coming.next == number
        coming.add(one)
    assert coming.next is None and coming.whole() == {"boot": "b" * 50}


@pytest.mark.parametrize(
    "change",
    [{"parts": 0}, {"parts": True}, {"parts": 10**6}, {"parts": "1"}, {"sha256": "00"}, {"sha256": None}],
)
def test_an_announcement_that_is_none_or_of_too_much(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        transfer.Parts({**cut({})[0], **change})
    with pytest.raises(Malformed):
        transfer.Parts(None)


@pytest.mark.parametrize(
    "part", [None, {}, {"text": ""}, {"text": 1}, {"text": "é"}, {"text": "x" * (400 * 1024)}, {"text": "x", "more": 1}]
)
def test_a_part_that_is_none(part: Any) -> None:
    with pytest.raises(Malformed):
        transfer.Parts(cut({})[0]).add(part)


def test_parts_of_another_answer_are_none() -> None:
    coming = transfer.Parts(cut([1])[0])
    coming.add({"text": "[2]"})
    with pytest.raises(Malformed, match="do not match the announced digest"):
        coming.whole()


@pytest.mark.parametrize("text", ["[1", "[" * 100_000], ids=["cut off", "nested"])
def test_parts_of_an_announced_answer_that_is_no_json(text: str) -> None:
    coming = transfer.Parts({"parts": 1, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    coming.add({"text": text})
    with pytest.raises(Malformed, match="answer: "):
        coming.whole()


# -- what somebody sends to exhaust the master --------------------------------------------
@pytest.mark.parametrize(
    "unit", [b"[],", b"{},", b'"",', b"1,", b"[", b'{"a":', b'{"a":"b"},', b" [ ] , ", b"1", b'"\\u0001",']
)
def test_a_bomb_in_parts_costs_no_more_than_its_text(unit: bytes) -> None:
    """An answer of 8 MiB with only empty lists is refused, with little more than three times its size in memory.

    Before there was a limit per byte, 45 MiB became 1.3 GiB of objects.
    """
    text = b"[" + unit * (8 * MIB // len(unit))
    text = text.rstrip(b",") + (b"]" if unit.endswith(b",") else b"")
    coming = transfer.Parts({"parts": -(-len(text) // PART), "sha256": hashlib.sha256(text).hexdigest()})
    for at in range(0, len(text), PART):
        coming.add({"text": text[at : at + PART].decode()})
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            coming.whole()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3.1 * len(text)


def test_an_answer_of_the_largest_size_is_read() -> None:
    text = json.dumps({"boot": "b", "evidence": {"ima": {"lines": "A" * (transfer.Parts.MOST - 1000)}}})
    assert transfer.parse(text.encode()) == json.loads(text)


# -- the time that it may take ------------------------------------------------------------
def fetch(number: int, seconds: float, timeout: float = 60.0) -> tuple[float, int, Any, str]:
    """Fetch an answer whose parts take *seconds* each; return its end, the parts, the answer and the problem."""
    text = json.dumps({"boot": "x" * (number * PART - 20)})
    head = {"parts": -(-len(text) // PART), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    work: Generator[Call, Answer, Any] = transfer.fetched(head, timeout)
    taken, parts = 0.0, 0
    try:
        call = next(work)
        while True:
            may = min(timeout, timeout if call.within is None else call.within)
            taken += min(seconds, may)
            if seconds > may:
                call = work.send(Answer(problem="nothing", took=may, silent=True))
                continue
            parts += 1
            part = text[call.value * PART : (call.value + 1) * PART]
            call = work.send(Answer({"text": part}, took=seconds))
    except StopIteration as end:
        value, came = end.value
        return taken, parts, value, came.problem


def test_parts_at_a_good_pace_are_all_fetched() -> None:
    taken, parts, value, problem = fetch(50, 5.0)
    assert (taken, parts, problem) == (250.0, 50, "") and len(value["boot"]) == 50 * PART - 20


@pytest.mark.parametrize(("seconds", "most"), [(59.0, 66.0), (61.0, 60.0), (20.0, 90.0), (7.0, 500.0)])
def test_a_drip_is_given_up_early(seconds: float, most: float) -> None:
    taken, _, value, problem = fetch(117, seconds)
    assert value is None and problem and taken <= most


def test_no_answer_takes_more_than_ten_timeouts() -> None:
    taken, parts, value, problem = fetch(117, 5.9)
    assert value is None and parts == 101 and 595 < taken <= 600 and "more than 600 s" in problem


def test_who_lost_his_room_is_asked_once_more() -> None:
    text = json.dumps({"boot": "x"})
    work = transfer.fetched({"parts": 1, "sha256": hashlib.sha256(text.encode()).hexdigest()}, 60)
    assert next(work).value == 0
    assert work.send(Answer(problem="slow", took=30, crowded=True)).value == 0
    with pytest.raises(StopIteration) as end:
        work.send(Answer({"text": text}))
    assert end.value.value[0] == {"boot": "x"}
    work = transfer.fetched({"parts": 1, "sha256": "00" * 32}, 60)
    next(work)
    work.send(Answer(problem="slow", crowded=True))
    with pytest.raises(StopIteration) as end:
        work.send(Answer(problem="slow", crowded=True))
    assert end.value.value[1].problem == "slow"
