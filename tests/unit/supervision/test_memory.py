"""Who was killed for want of memory, by the kernel's own counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.supervision import memory


@pytest.mark.parametrize(
    ("file", "content", "killed"),
    [
        ("netspace/web/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n", True),
        ("netspace/web/memory.events", "low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\n", False),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", False),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", False),
        ("memory/netspace/web/memory.oom_control", "damaged\n", False),
        ("memory/netspace/other/memory.oom_control", "oom_kill 2\n", False),
    ],
)
def test_it_is_counted(tmp_path: Path, file: str, content: str, killed: bool) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert memory.killed("/netspace/web", str(tmp_path)) is killed
