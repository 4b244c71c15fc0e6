"""Journal of a rollout: its content after a kill, the refusals in it, and how an old journal is read."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from netspace.errors import StateError
from netspace.fleet.hosts import Outcome
from netspace.fleet.policy import Pace
from netspace.fleet.rollout import records
from netspace.fleet.rollout.journal import Busy, Journal
from netspace.fleet.rollout.records import Group, Started
from netspace.fleet.rollout.state import Status

STARTED = Started(
    plan="9f3c",
    pace=Pace(step=2, max_fail=2, settle=30.0, gate=("health",), deadline=60.0),
    batches=(Group(hosts=("h1",), canary=True), Group(hosts=("h2", "h3"))),
    before={"h2": ("h1",)},
    at=1764480000.0,
)
OLD = b"""\
{"step":"started","plan":"9f3c","pace":{"step":2,"max_fail":2,"settle":30.0,"gate":["health"],"deadline":60.0},\
"batches":[{"hosts":["h1"],"canary":true},{"hosts":["h2","h3"],"canary":false}],"before":{"h2":["h1"]},"at":1764480000.0,"version":1}
{"step":"prepared","outcomes":{"h1":"","h2":"","h3":"no answer"}}
{"step":"sent","hosts":["h1"]}
{"step":"applied","outcomes":{"h1":""}}
{"step":"judged","outcomes":{"h1":""}}
{"step":"paused"}
{"step":"resumed"}
{"step":"sent","hosts":["h2"]}
{"step":"applied","outcomes":{"h2":"refused"}}
{"step":"stopping","why":"the operator stopped it","hosts":["h2"]}
{"step":"taken-back","outcomes":{"h2":""}}
{"step":"checked","outcomes":{"h2":""}}
{"step":"ended","at":1764480100.0}
"""
"""A journal of version 1. It keeps its meaning in all later versions."""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "rollout")
    with made.lock():
        made.begin(STARTED)
    return made


def path(journal: Journal) -> Path:
    return journal.folder / "journal"


def test_a_journal_of_version_1_keeps_its_meaning(journal: Journal) -> None:
    assert path(journal).read_bytes() == OLD.split(b"\n")[0] + b"\n"
    path(journal).write_bytes(OLD)
    found = journal.read()
    assert found is not None and found.ended == 1764480100.0 and found.stopping == "the operator stopped it"
    assert found.hosts == {"h1": Status.GOOD, "h2": Status.BACK, "h3": Status.REFUSED}
    path(journal).write_bytes(OLD.replace(b',"deadline":60.0', b""))
    before = journal.read()
    assert before is not None and before.started.pace.deadline == 0.0, "the first ones had no deadline"
    assert found.started == STARTED and found.reasons == {"h3": "no answer", "h2": "refused"}


def test_a_journal_that_was_written_is_read_back(journal: Journal) -> None:
    for line in OLD.splitlines()[1:]:
        journal.append(records.decode(line))
    assert path(journal).read_bytes() == OLD


def test_a_cut_off_line_counts_as_not_written(journal: Journal) -> None:
    whole = path(journal).read_bytes()
    for cut in range(1, len(OLD.split(b"\n")[1])):
        path(journal).write_bytes(whole + OLD.split(b"\n")[1][:cut])
        again = Journal(journal.folder)
        found = again.read()
        assert found is not None and not found.prepared
        again.append(records.Paused())
        assert path(journal).read_bytes() == whole + b'{"step":"paused"}\n'


def test_nothing_is_taken_up_that_is_not_on_the_disk(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    journal.append(records.Paused())
    assert synced == [path(journal).stat().st_size]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"step":"unknown"}',
        b'{"step":"paused","more":1}',
        b'{"step":"sent","hosts":["h9"]}',
        b'{"step":"sent","hosts":"h1"}',
        b'{"step":"judged","outcomes":{"h1":""}}',
        b'{"step":"stopping","why":"x","hosts":["h2"]}',
        b'{"step":"applied","outcomes":{"h1":7}}',
        b'{"step":"applied","outcomes":{"h1":""}}',
        OLD.split(b"\n")[0],
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_line_is_refused_with_its_number(journal: Journal, line: bytes) -> None:
    with open(path(journal), "ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(StateError, match=r"/journal: line 2: .*move the file away"):
        journal.read()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"batches": [{"hosts": ["h1"]}, {"hosts": ["h1"]}]},
        {"pace": {"step": 0, "max_fail": 1, "settle": 1.0, "gate": []}},
        {"pace": {"step": 1, "max_fail": 1, "settle": -1.0, "gate": []}},
        {"more": 1},
    ],
)
def test_a_start_that_is_impossible_is_refused(journal: Journal, change: dict[str, object]) -> None:
    data = msgspec.json.decode(OLD.split(b"\n")[0]) | change
    path(journal).write_bytes(msgspec.json.encode(data) + b"\n")
    with pytest.raises(StateError, match="line 1"):
        journal.read()


def test_records_after_the_end_are_refused(journal: Journal) -> None:
    path(journal).write_bytes(OLD + b'{"step":"paused"}\n')
    with pytest.raises(StateError, match="line 14: a record after the end"):
        journal.read()


def test_only_one_process_carries_a_rollout_out(journal: Journal) -> None:
    with journal.lock(), pytest.raises(Busy, match="a rollout is running"), Journal(journal.folder).lock():
        pass
    with journal.lock():
        pass


def test_a_new_journal_forgets_what_was_asked_before(journal: Journal) -> None:
    journal.ask("stop")
    assert Journal(journal.folder).asked() == "stop"
    journal.begin(STARTED)
    assert journal.asked() is None
    (journal.folder / "asked").write_bytes(b"rm -rf /\xff")
    assert journal.asked() is None


def test_no_rollout_is_no_error(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none").read() is None and Journal(tmp_path / "none").asked() is None


def test_reasons_are_bounded_and_printable() -> None:
    told = {"h1": Outcome(False, "\x1b[31m" + "x" * 1000), "h2": Outcome(True, "fine"), "h9": Outcome(True)}
    found = records.outcomes(("h1", "h2", "h3", "h4"), told | {"h4": Outcome(False)})
    assert "\x1b" not in found["h1"] and len(found["h1"]) <= records.MAX_REASON
    assert found == {"h1": found["h1"], "h2": "", "h3": "no answer", "h4": "it failed, and gave no reason"}
