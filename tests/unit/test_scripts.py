"""The help of the scripts: complete, and no wider than a terminal."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.fixture
def show() -> ModuleType:
    spec = importlib.util.spec_from_file_location("show", checkout.ROOT / "scripts/demo.d/show.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def path(sender: str, *, answers: bool = False, through: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"from": sender, "answers": answers, "through": list(through), "rules": []}


@pytest.mark.parametrize(
    "found",
    [
        None,
        "nothing is declared",
        {"paths": []},
        {"paths": [path("web")]},
        {"paths": [path("web"), path("till", answers=True)]},
        {"paths": [path("till"), path("web", through=("till",))]},
    ],
)
def test_demo_with_another_pillar_changes_nothing(
    found: Any, show: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def salt(*arguments: str) -> Any:
        asked.append(arguments)
        if found is None:
            raise show.Failed("there is no environment orders")
        return found

    monkeypatch.setattr(show, "salt", salt)
    assert show.run(show.up) == 1
    assert [function for function, *_ in asked] == ["netspace.paths_to"]
    lines = capsys.readouterr().out.splitlines()
    assert "this pillar isn't the demo's" in " ".join(lines) and max(map(len, lines)) <= 80


def test_demos_removal_fits_a_terminal(
    show: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {f"name{number}": {f"address:ipv{one}": {} for one in range(20)} for number in range(3)}
    monkeypatch.setattr(show, "salt", lambda *_: {"result": True, "changes": changes})
    monkeypatch.setattr(show, "leftovers", list)
    assert show.run(show.down) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.count("address:ipv") for line in lines) == 60


def test_demo_accepts_its_own_pillar(show: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "salt", lambda *_: {"paths": [path("web"), path("till")]})
    show.check_pillar()


def test_brokers_refusal_fits_a_terminal(
    show: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = (
        "refused: 403 ACCESS_REFUSED - write access to exchange 'link.till.web' in vhost 'netspace' refused for user x"
    )
    monkeypatch.setattr(show, "salt", lambda *_: {"retcode": 1, "stdout": f"{why}\n", "stderr": ""})
    show.refusal()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and why in " ".join(line.strip() for line in lines)
