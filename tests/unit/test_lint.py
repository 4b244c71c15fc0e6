"""The checks before a commit are the same as those of ``scripts/test lint``."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_pre_commit_runs_the_checks_of_scripts_test() -> None:
    lint = re.search(r"^lint\(\) \{ (.*); \}$", (ROOT / "scripts/test").read_text(), re.MULTILINE)
    assert lint is not None
    wanted = [one.replace('"$bin/', "").replace('"', "").removesuffix(" .") for one in lint[1].split(" && ")]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    found = [hook["entry"].replace(".venv/bin/", "").replace(" --force-exclude", "") for hook in repository["hooks"]]
    assert found == wanted == ["ruff check", "ruff format --check", "mypy"]
