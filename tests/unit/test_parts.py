"""Each test runs in exactly one part."""

from __future__ import annotations

from pathlib import Path

import parts
import pytest

ROOT = Path(__file__).parents[2]


def taken(file: str, command: list[str]) -> bool:
    """Return whether pytest would run a file with these arguments."""
    ignored = [argument.removeprefix("--ignore=") for argument in command if argument.startswith("--ignore=")]
    paths = [argument for argument in command if argument.startswith("tests/")]
    return any(f"{file}/".startswith(f"{path}/") for path in paths) and not any(
        f"{file}/".startswith(f"{path}/") for path in ignored
    )


@pytest.mark.parametrize("folders", [["unit", "functional", "integration", "vm"], ["vm"], ["functional"], ["unit"]])
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


def test_files_by_turns_each_run_on_one_of_the_days() -> None:
    folders = ["unit", "functional", "integration", "vm"]
    files = [file for turn in parts.FILES for file in turn]
    assert all((ROOT / file).exists() for file in files)
    left_out = [parts.of_another_day(folders, day) for day in range(len(parts.FILES))]
    assert all(sorted({*files} - {*left}) == sorted(turn) for left, turn in zip(left_out, parts.FILES, strict=True))
    whole = [parts.PARTS["integration"]["integration"], *(parts.PARTS["functional"][one] for one in ("host", "links"))]
    commands = [parts.command(paths, left_out[0]) for paths in whole]
    assert [file for file in files if any(taken(file, command) for command in commands)] == list(parts.FILES[0])
    assert parts.of_another_day(folders, None) == parts.of_another_day(["integration"], 1) == []


def test_parts_of_another_day_are_no_part_of_a_whole_folder() -> None:
    everything = [path for folder in parts.PARTS.values() for paths in folder.values() for path in paths]
    command = parts.command(parts.PARTS["vm"]["vm"], everything)
    assert not [path for path in parts.PARTS["vm"]["vm-attestation"] if taken(path, command)]
