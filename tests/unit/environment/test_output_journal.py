"""Lines from the journal: the reader never reads more from the journal than it keeps, whatever a program wrote.

A stand-in for journalctl writes the same form (``journalctl --output json``, journalctl(1)).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from netspace.environment import output
from netspace.environment.execute import MAX_OUTPUT
from netspace.environment.output import Line
from netspace.errors import NetspaceError

# Notes its process's number, complains, writes the content of a file some times, and notes that it came to its end.
JOURNALCTL = """#!{python} -I
import os, sys
from pathlib import Path
here = Path({here!r})
(here / "pid").write_text(str(os.getpid()))
sys.stderr.write("x" * {noise})
sys.stderr.flush()
line = (here / "lines").read_bytes()
for _ in range({times}):
    sys.stdout.buffer.write(line)
sys.stdout.flush()
(here / "whole").touch()
sys.exit({code})
"""


class Journal:
    """The stand-in for journalctl, in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, lines: bytes, times: int = 1, code: int = 0, noise: int = 0) -> None:
        program = self.folder / "journalctl"
        program.write_text(
            JOURNALCTL.format(python=sys.executable, here=str(self.folder), times=times, code=code, noise=noise)
        )
        program.chmod(0o755)
        (self.folder / "lines").write_bytes(lines)

    @property
    def read_whole(self) -> bool:
        return (self.folder / "whole").exists()

    @property
    def runs(self) -> bool:
        return os.path.exists(f"/proc/{(self.folder / 'pid').read_text()}")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Journal(tmp_path)


def entry(message: str, moment: float = 1.5) -> bytes:
    """Return an entry of the journal; *message* is JSON."""
    return f'{{"__REALTIME_TIMESTAMP":"{moment * 1e6:.0f}","_PID":"7","MESSAGE":{message}}}\n'.encode()


def test_lines_of_the_journal_are_in_their_order(journal: Journal) -> None:
    journal.write(entry('"new"', 2.0) + entry("[97,255]", 1.0))
    assert output.in_journal("a", 9, None, starts=False) == [Line("a\ufffd", 1.0), Line("new", 2.0)]
    assert journal.read_whole


def test_reading_ends_at_the_bound_and_ends_journalctl(journal: Journal) -> None:
    wide = 48 * 1024
    journal.write(entry(f"[{','.join(['255'] * wide)}]"), times=300)
    found = output.in_journal("a", 10_000, None, starts=False)
    assert [len(line.text) for line in found] == [wide] * (MAX_OUTPUT // wide)
    assert not journal.read_whole
    assert not journal.runs


def test_reading_ends_at_the_number_of_lines(journal: Journal) -> None:
    journal.write(entry('"line"'), times=100_000)
    assert output.in_journal("a", 3, None, starts=False) == [Line("line", 1.5)] * 3
    assert not journal.read_whole
    assert not journal.runs


def test_line_without_a_bound_is_told_and_not_kept(journal: Journal) -> None:
    journal.write(entry('"new"') + entry(f'"{"x" * 8 * MAX_OUTPUT}"') + entry('"old"'))
    assert output.in_journal("a", 9, None, starts=False) == [Line(output.CUT, None), Line("new", 1.5)]
    assert not journal.read_whole
    assert not journal.runs


def test_what_journalctl_complains_of_does_not_block_it(journal: Journal) -> None:
    journal.write(entry('"line"'), noise=128 * 1024)
    assert output.in_journal("a", 9, None, starts=False) == [Line("line", 1.5)]
    journal.write(entry('"line"'), noise=128 * 1024, code=1)
    with pytest.raises(NetspaceError, match=r"^journalctl: x{4096}$"):
        output.in_journal("a", 9, None, starts=False)


def test_journalctl_that_ends_in_a_line_is_an_error(journal: Journal) -> None:
    journal.write(entry('"new"') + b'{"__REALTIME', code=1, noise=1)
    with pytest.raises(NetspaceError, match=r"^journalctl: x$"):
        output.in_journal("a", 9, None, starts=False)


def test_journal_entries_become_lines() -> None:
    started = {"__REALTIME_TIMESTAMP": "1500000", "MESSAGE_ID": output._STARTED, "_PID": "1", "MESSAGE": "Started x."}

    def line(**changes: object) -> Line:
        return output._of_journal(json.dumps({**started, **changes}).encode())

    assert line() == Line("start", 1.5, start=True)
    assert line(_PID="7") == Line("Started x.", 1.5)
    assert line(_PID="7", MESSAGE=[97, 255]) == Line("a\ufffd", 1.5)
    assert line(_PID="7", MESSAGE=None) == Line("", 1.5)
    for changes in (
        {"MESSAGE": [[1]], "_PID": "7"},
        {"MESSAGE": [256], "_PID": "7"},
        {"__REALTIME_TIMESTAMP": "9" * 20},
    ):
        assert line(**changes) == Line(output.UNREADABLE, None), "it costs no other line"
    (told,) = output.shown([Line("a\n1970-01-01T00:00:00.000+00:00 = start", 1.5)], times=True)
    assert "\n" not in told
