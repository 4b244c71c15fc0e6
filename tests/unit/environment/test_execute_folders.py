"""Folders of executions: each is removed after its execution; if netspace was killed, by the next execution."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from netspace.environment import execute
from netspace.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(root=tmp_path)
    made.run.mkdir(parents=True)
    return made


def folders(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.run.iterdir())


def test_folder_of_a_killed_execution_is_swept(layout: Layout) -> None:
    pid = os.fork()
    if not pid:
        with execute._scratch(layout) as folder:
            (folder / "pid").write_text("1")
            os._exit(0)  # as a kill: nothing is cleaned up
    os.waitpid(pid, 0)
    assert len(folders(layout)) == 1
    execute.sweep(layout)
    assert folders(layout) == []


def test_folder_in_use_is_not_swept(layout: Layout) -> None:
    (layout.run / "execution.json").write_text("{}")
    with execute._scratch(layout) as folder:
        execute.sweep(layout)
        assert folders(layout) == [folder.name, "execution.json"]
    assert folders(layout) == ["execution.json"]


def test_folder_swept_before_its_lock_is_made_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    mkdtemp = tempfile.mkdtemp

    def swept(*args: str, **kwargs: str) -> str:
        folder = mkdtemp(*args, **kwargs)
        made.append(Path(folder))
        if len(made) == 1:
            execute.sweep(layout)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with execute._scratch(layout) as folder:
        assert len(made) == 2 and folder == made[1] and folder.is_dir()


def test_folder_swept_while_its_lock_is_waited_for_is_made_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, made = execute.fcntl.flock, []

    def slow(fd: int, how: int) -> None:
        made.append(fd)
        if len(made) == 1:
            (layout.run / folders(layout)[0]).rmdir()
        flock(fd, how)

    monkeypatch.setattr(execute.fcntl, "flock", slow)
    with execute._scratch(layout) as folder:
        assert len(made) == 2 and folder.is_dir()
