"""The watch over a program that just started, in a process with many descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

import pytest

from netspace.environment import starting
from netspace.layout import Layout
from netspace.supervision.service import Status, Supervisor

MANY = 1100  # select(2) takes descriptors below 1,024 only


@pytest.fixture
def crowded() -> Iterator[None]:
    """Open so many files that the next descriptor has a number above 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * MANY:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MANY), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(MANY)]
    yield
    for one in opened:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Running:
    """A stand-in for a supervisor, with one running service."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        return {"environment-web": Status("running", self.pid)}


@pytest.mark.usefixtures("crowded")
def test_watch_takes_descriptors_above_1024(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            supervisor = cast("Supervisor", Running(child.pid))
            assert starting.problems(Layout(root=tmp_path), supervisor, ["web"], {}) == {}
        finally:
            child.kill()
