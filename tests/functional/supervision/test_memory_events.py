"""Notices of OOM kills from the kernel's control groups: a notice names the killed program's group."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netspace.supervision import memory_events

pytestmark = pytest.mark.root

HUNGRY = "import sys; sys.stdin.read(1); b'x' * (256 * 1024 * 1024)"


def folder(group: str) -> Path:
    unified = os.path.exists(f"{memory_events.ROOT}/cgroup.controllers")
    return Path(f"{memory_events.ROOT}{'' if unified else '/memory'}{group}")


@pytest.fixture
def groups() -> Iterator[list[str]]:
    """Two groups that have no process."""
    names = ["/netspace-notices-web", "/netspace-notices-orders"]
    for name in names:
        folder(name).mkdir()
    yield names
    for name in names:
        if folder(name).exists():
            folder(name).rmdir()


@pytest.fixture
def notices() -> Iterator[memory_events.Notices]:
    made = memory_events.Notices()
    yield made
    for name in ("web", "orders"):
        made.forget(name)
    os.close(made.fd)


def heard(notices: memory_events.Notices) -> set[str]:
    """Wait for a notice; return the services whose groups it names."""
    assert select.select([notices.fd], [], [], 60)[0], "no notice came"
    names = notices.heard()
    assert names is not None, "the notice names no group"
    return names


def test_notice_of_a_kill_names_only_its_group(groups: list[str], notices: memory_events.Notices) -> None:
    for name, group in zip(("web", "orders"), groups, strict=True):
        notices.watch(name, group)
    web = folder(groups[0])
    bound = next(path for path in (web / "memory.max", web / "memory.limit_in_bytes") if path.exists())
    bound.write_text(str(32 * 1024 * 1024))
    with subprocess.Popen([sys.executable, "-c", HUNGRY], stdin=subprocess.PIPE) as child:
        (web / "cgroup.procs").write_text(str(child.pid))
        child.communicate(b"\n")
    assert child.returncode == -9
    assert heard(notices) == {"web"}
    assert [memory_events.kills(group) for group in groups] == [1, 0]
    assert notices.heard() == set()


@pytest.mark.skipif(
    os.path.exists(f"{memory_events.ROOT}/cgroup.controllers"), reason="version 2 sends no notice of a removal"
)
def test_notice_of_a_removal_names_only_its_group(groups: list[str], notices: memory_events.Notices) -> None:
    for name, group in zip(("web", "orders"), groups, strict=True):
        notices.watch(name, group)
    folder(groups[1]).rmdir()
    assert heard(notices) == {"orders"}


@pytest.mark.skipif(
    os.path.exists(f"{memory_events.ROOT}/cgroup.controllers"), reason="version 2 has no descriptor for each group"
)
def test_forgotten_group_that_a_child_holds_is_silent(groups: list[str], notices: memory_events.Notices) -> None:
    for name, group in zip(("web", "orders"), groups, strict=True):
        notices.watch(name, group)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # as it is before exec: all descriptors are open
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes its end
        os._exit(0)
    try:
        notices.forget("web")
        folder(groups[0]).rmdir()  # the kernel tells that by the eventfd, which the child has
        folder(groups[1]).rmdir()  # ... and this a moment later
        assert heard(notices) == {"orders"}
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(child, 0)


def test_notices_of_a_group_made_anew_leak_nothing(groups: list[str], notices: memory_events.Notices) -> None:
    notices.watch("web", groups[0])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        folder(groups[0]).rmdir()
        folder(groups[0]).mkdir()
        notices.watch("web", groups[0])
    assert len(os.listdir("/proc/self/fd")) == before
