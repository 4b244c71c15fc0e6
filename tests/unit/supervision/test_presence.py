"""The daemon's lock: its file names the holder, and the kernel's list of all locks is read only if it doesn't."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netspace.layout import Layout
from netspace.supervision import definitions, process
from netspace.supervision.daemon import client, presence
from netspace.supervision.daemon.client import DaemonSupervisor


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    own = Layout(root=tmp_path)
    own.run.mkdir(parents=True)
    return own


@pytest.fixture
def lock(layout: Layout) -> Iterator[int]:
    """A descriptor of the lock's file, whose lock this process holds."""
    fd = os.open(presence.lock_path(layout), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


def test_holder_is_known_without_the_list_of_all_locks(layout: Layout, lock: int, monkeypatch) -> None:
    os.write(lock, b"an older and longer content of the file")
    presence.hold(lock)
    # An environment can make that list so long that reading it takes seconds.
    monkeypatch.setattr(presence, "_listed", lambda _: pytest.fail("the list was read"))
    assert presence.holder(layout) == os.getpid()


@pytest.mark.parametrize("content", [b"", b"1 2 3", b"x", b"-1 0", b"4194304 7\n", b"1 1\n", bytes(100)])
def test_holder_is_found_where_the_file_tells_none(content: bytes, layout: Layout, lock: int) -> None:
    os.write(lock, content)
    assert presence.holder(layout) == os.getpid()


def test_holder_is_nobody_once_the_lock_is_free(layout: Layout, lock: int) -> None:
    presence.hold(lock)
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert presence.holder(layout) == 0


def test_noticed_kills_suffice_while_a_daemon_watches(layout: Layout, lock: int, monkeypatch) -> None:
    own = process.stat(os.getpid())
    assert own is not None
    for folder in (definitions.folder(layout), definitions.traces(layout)):
        folder.mkdir(parents=True)
    (definitions.folder(layout) / "a.json").write_text("{}")
    trace = definitions.Trace("running", os.getpid(), own.ticks, 1.0, 0, "", {}, oom_kills=2, oom_seen=1)
    definitions.write_trace(layout, "a", trace)
    monkeypatch.setattr(client.memory_events, "reader", lambda: lambda cgroup: 5)
    supervisor = DaemonSupervisor(layout)
    presence.hold(lock)
    assert supervisor.observe()["a"].oom_kills == 2 + 5 - 1
    assert supervisor.observe(noticed=True)["a"].oom_kills == 2
    fcntl.flock(lock, fcntl.LOCK_UN)  # nobody notices a kill until the daemon runs again
    assert supervisor.observe(noticed=True)["a"].oom_kills == 2
