"""The help of the scripts: complete, and no wider than a terminal."""

from __future__ import annotations

import re
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
