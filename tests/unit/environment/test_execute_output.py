"""Output of an additional program: the part that is kept, and the processor time that reading the rest may cost."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from netspace.environment import execute
from netspace.environment.execute import DROPPED, MAX_OUTPUT


@pytest.fixture
def rests(monkeypatch) -> list[float]:
    """Replace the reader's pauses; return the list of their lengths in seconds."""
    found: list[float] = []
    monkeypatch.setattr(execute, "time", SimpleNamespace(**{**vars(time), "sleep": found.append}))  # others rest, too
    return found


def ran(tmp_path, size: int) -> execute.Done:
    return execute._run(["head", "-c", str(size), "/dev/zero"], b"", 60.0, tmp_path / "pid", "/none")


def test_output_that_is_dropped_is_read_slowly(tmp_path, rests):
    done = ran(tmp_path, 4 * MAX_OUTPUT)
    assert (done.retcode, done.truncated, done.timed_out) == (0, True, False)
    assert len(done.stdout) == MAX_OUTPUT
    assert sum(rests) * DROPPED == pytest.approx(3 * MAX_OUTPUT)


def test_output_that_is_kept_is_read_at_once(tmp_path, rests):
    done = ran(tmp_path, MAX_OUTPUT)
    assert (len(done.stdout), done.truncated, rests) == (MAX_OUTPUT, False, [])
