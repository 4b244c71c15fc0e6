"""Weights by use, with files in the form of both versions' control groups."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from netspace.supervision import turns
from netspace.supervision.turns import FREE, MOST, Turns, halved

GROUP = "/netspace"
VERSIONS = {1: ("cpu.shares", 1024), 2: ("cpu.weight", 100)}


class Groups:
    """Environments' control groups in a folder; time and use pass as a test says."""

    def __init__(self, root: Path, version: int) -> None:
        self.root, self.version, self.now = root, version, 100.0
        self.file, self.full = VERSIONS[version]
        self.used: dict[str, float] = {}
        self.gone = 0.0  # what removed groups used: it still counts for the group above
        if version == 2:
            (root / "cgroup.controllers").write_text("cpu memory\n")
        self.turns = Turns(GROUP, str(root))

    def add(self, *names: str, weight: int = 0) -> None:
        for name in names:
            self.used[name] = 0.0
            path = self.weight_file(name)
            path.parent.mkdir(parents=True)
            path.write_text(f"{weight or self.full}\n")
        self._write()

    def weight_file(self, name: str) -> Path:
        return self.root / ("" if self.version == 2 else "cpu") / GROUP[1:] / name / self.file

    def weight(self, name: str) -> int:
        return int(self.weight_file(name).read_text())

    def remove(self, name: str) -> None:
        self.gone += self.used.pop(name)
        for controller in {"", "cpu", "cpuacct"}:
            folder = self.root / controller / GROUP[1:] / name
            if folder.is_dir():  # kept elsewhere, so that no new folder has its number
                folder.rename(Path(tempfile.mkdtemp(dir=self.root)) / name)

    def _write(self) -> None:
        for name, seconds in {"": self.gone + sum(self.used.values()), **self.used}.items():
            folder = self.root / ("" if self.version == 2 else "cpuacct") / GROUP[1:] / name
            folder.mkdir(parents=True, exist_ok=True)
            if self.version == 2:
                (folder / "cpu.stat").write_text(f"usage_usec {round(seconds * 1e6)}\nuser_usec 1\n")
            else:
                (folder / "cpuacct.usage").write_text(f"{round(seconds * 1e9)}\n")

    def pass_time(self, times: int = 1, **use: float) -> bool:
        """Let half seconds pass, in which environments use so many processors."""
        lowered = False
        for _ in range(times):
            self.now += 0.5
            for name, processors in use.items():
                self.used[name] += processors / 2
            self._write()
            lowered = self.turns.look(self.now)
        return lowered


@pytest.fixture(params=VERSIONS)
def groups(tmp_path: Path, request: pytest.FixtureRequest) -> Groups:
    return Groups(tmp_path, request.param)


def test_weight_falls_with_use_and_has_a_least_value() -> None:
    uses = [number / 100 for number in range(1600)]
    times = [halved(use) for use in uses]
    assert times == sorted(times), "who uses more never has more"
    assert (halved(0), halved(FREE), halved(1000)) == (0, 0, MOST)
    assert halved(2 * 0.26) == halved(0.26) + 4, "twice the use is a sixteenth of the weight"


def test_restarts_between_two_looks_hide_no_use(groups: Groups) -> None:
    """A program that is restarted all the time has a new group, whose counter is small, at each look."""
    groups.add("restarted", "other")
    groups.pass_time(restarted=1.0)
    for _ in range(6):
        groups.remove("restarted")
        groups.add("restarted")
        groups.pass_time(restarted=0.9)
    assert groups.weight("restarted") < groups.full / 4


def test_who_computes_goes_last_and_gets_its_weight_back(groups: Groups) -> None:
    groups.add("worst", "web")
    groups.pass_time()
    assert groups.pass_time(4, worst=1.0, web=0.2)
    assert groups.weight("worst") <= groups.full / 8
    assert groups.weight("web") == groups.full
    groups.pass_time(8)
    assert groups.weight("worst") == groups.full
    assert not groups.pass_time()


def test_two_that_compute_have_the_same_weight(groups: Groups) -> None:
    groups.add("one", "other")
    groups.pass_time(6, one=1.0, other=1.0)
    assert groups.weight("one") == groups.weight("other") < groups.full


def test_look_reads_one_file_while_little_is_used(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    groups.add(*(f"environment-{number}" for number in range(100)))
    groups.pass_time(2)
    read: list[str] = []
    monkeypatch.setattr(turns, "file_value", lambda path, word=b"": read.append(path))
    groups.turns.look(groups.now + 1)
    assert len(read) == 1


def test_weights_of_a_killed_supervisor_are_set_anew(groups: Groups) -> None:
    groups.add("web", weight=32)
    groups.pass_time()
    assert groups.weight("web") == groups.full


def test_environment_that_went_is_forgotten(groups: Groups) -> None:
    groups.add("worst", "web")
    groups.pass_time(4, worst=1.0)
    groups.remove("worst")
    groups.pass_time(2)
    groups.add("worst")
    assert not groups.pass_time(2)
    assert groups.weight("worst") == groups.full


def test_weight_somebody_changed_is_set_again(groups: Groups) -> None:
    groups.add("worst")
    groups.pass_time(4, worst=1.0)
    lowered = groups.weight("worst")
    groups.weight_file("worst").write_text(str(groups.full))
    groups.pass_time(worst=1.0)
    assert groups.weight("worst") == lowered


def test_without_that_controller_nothing_is_written(tmp_path: Path) -> None:
    assert not Turns(GROUP, str(tmp_path)).look(1.0)
    assert list(tmp_path.iterdir()) == []
