"""Each test runs in exactly one part."""

from __future__ import annotations

import re
from pathlib import Path

import parts
import pytest
from support.sampling import EVERY

ROOT = Path(__file__).parents[2]
FOLDERS = ["unit", "functional", "integration", "vm"]


def taken(file: str, command: list[str]) -> bool:
    """Return whether pytest would run a file with these arguments."""
    ignored = [argument.removeprefix("--ignore=") for argument in command if argument.startswith("--ignore=")]
    paths = [argument for argument in command if argument.startswith("tests/")]
    return any(f"{file}/".startswith(f"{path}/") for path in paths) and not any(
        f"{file}/".startswith(f"{path}/") for path in ignored
    )


@pytest.mark.parametrize("folders", [FOLDERS, ["vm"], ["functional"], ["unit"]])
def test_every_file_is_in_one_part(folders: list[str]) -> None:
    chosen = parts.in_order(folders)
    everything = [path for paths in chosen.values() for path in paths]
    commands = {name: parts.command(paths, everything) for name, paths in chosen.items()}
    for path in everything:
        assert (ROOT / path).exists(), path
    files = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / "tests" / folder).rglob("test_*.py")]
    assert files
    for file in files:
        assert len([name for name, command in commands.items() if taken(file, command)]) == 1, file


def test_machines_run_by_turns_beside_others_and_all_of_them_alone() -> None:
    machines = {*parts.PARTS["vm"], "lab-tpm"}
    assert sorted(name for turn in parts.TURNS for name in turn) == sorted(machines)
    days = [set(parts.in_order(["unit", "integration", "vm"], day)) & machines for day in range(len(parts.TURNS))]
    assert days == [set(turn) for turn in parts.TURNS]
    assert set(parts.in_order(["vm"], 1)) == set(parts.PARTS["vm"])


def of_day(day: int | None) -> list[list[str]]:
    """Return the commands of a day's parts."""
    left_out = [path for folder in parts.PARTS.values() for paths in folder.values() for path in paths]
    left_out += parts.of_another_day(FOLDERS, day)
    return [parts.command(paths, left_out) for paths in parts.in_order(FOLDERS, day).values()]


@pytest.mark.parametrize("day", [None, *range(len(parts.FILES))])
def test_files_by_turns_run_on_their_days_alone(day: int | None) -> None:
    files = {file for turn in parts.FILES for file in turn}
    assert all((ROOT / file).exists() for file in files)
    run = {file for file in files if any(taken(file, command) for command in of_day(day))}
    assert run == (files if day is None else {*parts.FILES[day]})


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_asked_for_alone_has_all_its_files(folder: str) -> None:
    assert parts.of_another_day([folder], 1) == []
    assert parts.in_order([folder], 1) == parts.in_order([folder])


@pytest.mark.parametrize("file", sorted({file for turn in parts.FILES for file in turn}))
def test_share_of_a_file_by_turns_counts_its_own_days(file: str) -> None:
    """A file that runs only every EVERY-th day tells ``todays`` so.

    If its share of the samples changed daily, it could meet the same share every time it runs.
    """
    assert len(parts.FILES) == EVERY
    for call in re.findall(r"\btodays\((.*)", (ROOT / file).read_text()):
        assert "every=EVERY" in call, f"{file}: {call}"


def test_parts_of_another_day_are_no_part_of_a_whole_folder() -> None:
    everything = [path for folder in parts.PARTS.values() for paths in folder.values() for path in paths]
    command = parts.command(parts.PARTS["vm"]["vm"], everything)
    assert not [path for path in parts.PARTS["vm"]["vm-attestation"] if taken(path, command)]
