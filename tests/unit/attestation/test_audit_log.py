"""The audit log: every change to it is detected, and it survives a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from support.waiting import until

from netspace.attestation.registrar import audit_log
from netspace.attestation.registrar.audit_log import Head, LogBroken
from netspace.errors import NetspaceError


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "state/audit.log"
    for number in range(5):
        audit_log.append(path, "issued", {"minion": f"host{number}", "serial": number}, when=1000 + number)
    return path


def test_records_are_chained_and_readable(log: Path) -> None:
    head = audit_log.verify(lines(log))
    last = json.loads(lines(log)[-1])
    assert head == Head(5, last["hash"]) and last["data"] == {"minion": "host4", "serial": 4}
    assert last["time"] == 1004 and last["event"] == "issued"
    assert log.stat().st_mode & 0o7777 == 0o600
    assert audit_log.verify([]) == Head()


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda found: found.pop(2), 3),
        (lambda found: found.insert(2, found[2]), 4),
        (lambda found: found.__setitem__(slice(1, 3), [found[2], found[1]]), 2),
        (lambda found: found.__setitem__(1, found[1].replace(b"host1", b"host9")), 2),
        (lambda found: found.__setitem__(1, found[1].replace(b'":', b'": ', 1)), 2),
        (lambda found: found.__setitem__(0, b"{}\n"), 1),
        (lambda found: found.__setitem__(0, b"[" * 60_000 + b"\n"), 1),
        (lambda found: found.__setitem__(4, found[4][:-1]), 5),
        (lambda found: found.append(b"x" * audit_log.MAX_RECORD + b"\n"), 6),
    ],
)
def test_what_is_done_to_it_is_found(log: Path, edit, line: int) -> None:
    found = lines(log)
    edit(found)
    with pytest.raises(LogBroken) as caught:
        audit_log.verify(found)
    assert caught.value.line == line


def test_a_record_that_is_made_anew_breaks_the_next(log: Path) -> None:
    found = lines(log)
    changed = audit_log.record(Head(1, json.loads(found[0])["hash"]), 1001, "issued", {"minion": "evil"})
    found[1] = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(LogBroken) as caught:
        audit_log.verify(found)
    assert caught.value.line == 3


def test_cutting_the_end_off_is_found_by_a_head_that_was_noted(log: Path) -> None:
    head = audit_log.verify(lines(log))
    assert audit_log.verify(lines(log)[:3]).records == 3
    with pytest.raises(LogBroken, match="ends here"):
        audit_log.verify(lines(log)[:3], head)
    audit_log.append(log, "issued", {})
    assert audit_log.verify(lines(log), head).records == 6
    with pytest.raises(LogBroken, match="was noted"):
        audit_log.verify(lines(log), Head(5, "0" * 64))


@pytest.mark.parametrize("left", [1, 30, -1])
def test_a_half_written_record_is_removed_and_told(log: Path, left: int) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + lines(log)[-1][:left])
    head = audit_log.append(log, "issued", {"minion": "next"})
    assert head.records == 7 and audit_log.verify(lines(log)) == head
    assert json.loads(lines(log)[5])["event"] == "log-repaired"


def test_half_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"n"')
    assert audit_log.append(tmp_path / "log", "issued", {}).records == 2
    assert audit_log.verify(lines(tmp_path / "log")).records == 2


def test_nothing_is_appended_to_a_damaged_log(log: Path) -> None:
    for damage in (b"x\n", b"{}\n", b'{"n":1}\n', lines(log)[-1].replace(b"host4", b"host5")):
        before = log.read_bytes() + damage
        log.write_bytes(before)
        with pytest.raises(LogBroken):
            audit_log.append(log, "issued", {})
        assert log.read_bytes() == before
        log.write_bytes(before[: -len(damage)])


def test_a_log_that_others_may_write(log: Path) -> None:
    log.chmod(0o622)
    with pytest.raises(NetspaceError, match="0622"):
        audit_log.append(log, "issued", {})


def test_a_link_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        audit_log.append(tmp_path / "log", "issued", {})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("", {}),
        ("Issued", {}),
        ("x" * 65, {}),
        ("a", {"x": b""}),
        ("a", {"x": float("nan")}),
        ("a", {"x": "y" * 70_000}),
    ],
)
def test_what_can_not_be_written_is_not(log: Path, event: str, data: dict) -> None:
    before = log.read_bytes()
    with pytest.raises(NetspaceError):
        audit_log.append(log, event, data)
    assert log.read_bytes() == before


def test_many_at_once(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(checkout.ROOT / '_utils')!r})\n"
        "from pathlib import Path\nfrom netspace.attestation.registrar import audit_log\n"
        "for n in range(20): audit_log.append(Path(sys.argv[1]), 'issued', {'n': n})\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log")]) for _ in range(4)]
    assert [one.wait() for one in running] == [0] * 4
    assert audit_log.verify(lines(tmp_path / "log")).records == 80


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = (
        f"import sys; sys.path.insert(0, {str(checkout.ROOT / '_utils')!r})\n"
        "from pathlib import Path\nfrom netspace.attestation.registrar import audit_log\n"
        "print('ready', flush=True)\n"
        "while True: audit_log.append(Path(sys.argv[1]), 'issued', {'x': 'y' * 50_000})\n"
    )
    begun = 0

    def grown() -> bool:
        return path.exists() and path.stat().st_size > begun + 200_000

    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            running.stdout.readline()
            until(grown, pause=0)
            running.kill()
        head = audit_log.append(path, "issued", {})
        assert audit_log.verify(lines(path)) == head
        begun = path.stat().st_size


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_is_accepted(data: st.DataObject) -> None:
    head, found = Head(), []
    for number in range(4):
        made = audit_log.record(head, number, "issued", {"n": number, "text": "é"})
        found.append(json.dumps(made, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        head = Head(head.records + 1, made["hash"])
    raw = bytearray(b"".join(found))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if bytes(raw) == b"".join(found):
        return
    with pytest.raises(LogBroken):
        audit_log.verify(bytes(raw).splitlines(keepends=True), head)
