"""The schedule of log rotation: all logs are checked regularly, and logs of just started programs sooner."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.layout import Layout
from netspace.supervision.daemon import log_rotation, logs
from netspace.supervision.daemon.log_rotation import Rotation
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.units import Units
from netspace.supervision.service import Service


class Clock:
    """A simulated clock, which jumps from timer to timer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def pass_by(self, loop: Loop, seconds: float) -> None:
        until = self.now + seconds
        while loop._timers and loop._timers[0][0] <= until:
            self.now = loop._timers[0][0]
            loop.due()
        self.now = until


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the logs that were checked."""
    found: list[str] = []
    real = logs.rotate
    monkeypatch.setattr(logs, "rotate", lambda path: found.append(path.name) or real(path, logs.SIZE))
    return found


def rotation(folder: Path, *names: str) -> tuple[Rotation, Loop]:
    """Return the rotation of these services' logs, after the first check."""
    loop = Loop()
    units = Units(Layout(root=folder), lambda _: None)
    for name in names:
        unit = units.get(name)
        unit.service = Service(name, ("/bin/true",), log=folder / f"{name}.log")
        units.active.add(name)
    made = Rotation(units, loop)
    made.look()
    return made, loop


def test_start_of_one_looks_at_its_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: list[str]
) -> None:
    clock = Clock(monkeypatch)
    made, loop = rotation(tmp_path, "a", "b", "c")
    clock.pass_by(loop, 5 * log_rotation.SLOWEST)
    others, looked[:] = looked.count("b.log"), []
    made.look_soon(tmp_path / "a.log")
    clock.pass_by(loop, log_rotation.SLOWEST)
    assert others > 4
    assert (looked.count("b.log"), looked.count("c.log")) == (1, 1), "by the regular look at all"
    assert looked.count("a.log") > 4
    looked.clear()
    clock.pass_by(loop, 10 * log_rotation.SLOWEST)
    assert looked.count("a.log") <= looked.count("b.log") + 1, "and then with all others"


def test_log_that_grows_fast_after_a_start_is_rotated_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: list[str]
) -> None:
    monkeypatch.setattr(logs, "SIZE", 1000)
    clock = Clock(monkeypatch)
    made, loop = rotation(tmp_path, "a", "b")
    clock.pass_by(loop, 5 * log_rotation.SLOWEST)
    looked.clear()
    made.look_soon(tmp_path / "a.log")
    for second in range(60):
        with (tmp_path / "a.log").open("ab") as stream:
            stream.write(bytes(200))
        clock.pass_by(loop, 1)
        assert (tmp_path / "a.log").stat().st_size <= 2000, f"after {second} seconds"
    assert looked.count("a.log") > 20
    assert looked.count("b.log") < 10


def test_removed_log_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: list[str]) -> None:
    clock = Clock(monkeypatch)
    made, loop = rotation(tmp_path)
    made.look_soon(tmp_path / "a.log")
    made.remove(tmp_path / "a.log")
    looked.clear()
    clock.pass_by(loop, 5)
    assert "a.log" not in looked
