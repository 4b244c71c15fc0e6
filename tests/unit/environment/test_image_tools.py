"""Programs that work on images end with the process that started them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import until

from netspace.environment.images import Store, sources, tools
from netspace.errors import MissingError
from netspace.layout import Layout

STARTER = """
import signal, sys
from netspace.environment.images import tools
with tools.started(["sleep", "1000"]) as process:
    print(process.pid, flush=True)
    signal.pause()
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_program_ends_with_who_started_it() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:1])
    starter.kill()
    starter.wait()
    starter.stdout.close()
    until(lambda: not runs(pid))


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="apt-get install erofs-utils")
def test_what_an_interrupted_build_left_running_is_ended_by_the_next(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    target = layout.images / ".building-left/image"
    target.parent.mkdir(parents=True)
    command = ["mkfs.erofs", "--quiet", "-T0", "--mkfs-time", "-U", sources.UUID, "--tar=f", str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as left:
        until(target.exists)
        Store(layout).tidy()
        assert left.wait(20) == -9
    assert not target.parent.exists()


def test_a_missing_program_is_told() -> None:
    with pytest.raises(MissingError, match="no-such-program"), tools.started(["no-such-program"]):
        pass


@pytest.mark.parametrize("program", ["mkfs.erofs", "fsck.erofs", "dump.erofs"])
def test_a_missing_program_is_told_with_its_package(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="install erofs-utils"), tools.started([program]):
        pass
