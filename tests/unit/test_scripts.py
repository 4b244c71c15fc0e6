"""The help of the scripts: complete, and no wider than a terminal."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import checkout

SCRIPTS = sorted(path.name for path in (checkout.ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_a_script_is_whole_and_80_columns(name: str) -> None:
    path: Path = checkout.ROOT / "scripts" / name
    done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    (header,) = re.findall(r"\A#!/bin/bash\n(.*?)^set ", path.read_text(), re.MULTILINE | re.DOTALL)
    assert lines == [re.sub("^# ?", "", line) for line in header.splitlines()]
    assert "usage: " in done.stdout


@pytest.mark.parametrize("arguments", [["--dwon"], ["--down", "now"], ["--hosts", "--down"]])
def test_demo_with_unknown_arguments_does_nothing(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()  # alone, so that a demo which goes on finds nothing to run
    demo = shutil.copy(checkout.ROOT / "scripts" / "demo", tmp_path / "scripts")
    done = subprocess.run([demo, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"demo: unknown arguments: {' '.join(arguments)}; try --help\n"
