"""OOM kills: the kernel's counts, and its notices."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.naming import named

from netspace.supervision import memory_events, process


@pytest.mark.parametrize(
    ("file", "content", "kills"),
    [
        ("netspace/web/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n", 1),
        ("netspace/web/memory.events", "low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\n", 0),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", 0),
        ("memory/netspace/web/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ("memory/netspace/web/memory.oom_control", "damaged\n", 0),
        ("memory/netspace/other/memory.oom_control", "oom_kill 2\n", 0),
    ],
)
def test_it_is_counted(tmp_path: Path, file: str, content: str, kills: int) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert memory_events.kills("/netspace/web", str(tmp_path)) == kills


@pytest.mark.parametrize(("options", "above", "read"), [
    ("rw,nosuid", 0, 0), ("rw,nosuid", 1, 2), ("rw,memory_localevents", 0, 2), ("rw,nosuid", None, 2),
])  # fmt: skip
def test_groups_are_read_only_after_a_kill_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, above: int | None, read: int
) -> None:
    """While the group above has counted no kill, the groups below it aren't read.

    A group counts the kills of all groups below it, unless the hierarchy was mounted without these sums.
    """
    monkeypatch.setattr(memory_events, "ROOT", str(tmp_path))
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "all/web").mkdir(parents=True)
    (tmp_path / "all/web/memory.events").write_text("oom_kill 2\n")
    if above is not None:
        (tmp_path / "all/memory.events").write_text(f"oom_kill {above}\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {tmp_path} cgroup2 {options} 0 0\ntmpfs /run tmpfs rw 0 0\n")
    sums = memory_events._sums(str(mounts))
    monkeypatch.setattr(memory_events, "_sums", lambda: sums)
    assert memory_events.reader("/all")("/all/web") == read


def test_of_version_2_it_is_told_whose_group_it_was(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    for name in ("web", "orders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.events").write_text("oom_kill 0\n")
    notices = memory_events.Notices(str(tmp_path))
    try:
        for name in ("web", "orders", "nothing"):
            notices.watch(name, f"/{name}")
        assert notices.heard() == set()
        (tmp_path / "web/memory.events").write_text("oom_kill 1\n")
        assert notices.heard() == {"web"}
        assert notices.heard() == set()
        # A group that is made anew is another.
        (tmp_path / "web/memory.events").unlink()
        (tmp_path / "web/memory.events").write_text("oom_kill 0\n")
        notices.watch("web", "/web")
        notices.heard()
        (tmp_path / "web/memory.events").write_text("oom_kill 1\n")
        assert notices.heard() == {"web"}
        assert len(notices._watched) == 2
    finally:
        os.close(notices.fd)


def test_one_that_is_about_to_end_is_known() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not process.dying(child.pid)
        child.send_signal(signal.SIGSTOP)
        child.kill()
        assert process.dying(child.pid)
    assert process.dying(child.pid), "there is none"


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a) Z 1 1 1", b"\x0bSigPnd: 100", b"\xc2\x85SigPnd:\t100"])
def test_process_with_any_name_is_not_dying(name: bytes) -> None:
    with named(name):
        assert not process.dying(os.getpid())


def test_forgotten_group_that_a_child_still_holds_is_silent(tmp_path: Path) -> None:
    """A removed group whose descriptor a forked child still holds gives no notice.

    The kernel writes to the descriptor when the group is removed.
    """
    for name in ("web", "orders"):
        folder = tmp_path / "memory" / name
        folder.mkdir(parents=True)
        for file in ("memory.oom_control", "cgroup.event_control"):
            (folder / file).touch()
    notices = memory_events.Notices(str(tmp_path))
    for name in ("web", "orders"):
        notices.watch(name, f"/{name}")
    told = (tmp_path / "memory/web/cgroup.event_control").read_text()
    held = os.dup(int(told.split()[0]))
    try:
        notices.forget("web")
        os.eventfd_write(held, 1)
        assert notices.heard() == set()
        os.eventfd_write(notices._eventfds["orders"], 1)
        assert notices.heard() == {"orders"}
    finally:
        os.close(held)
        notices.forget("orders")
        os.close(notices.fd)
