"""Test of a helper of the tests, which runs commands of Salt as forks of one process: a fork ends with its command."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from support.hosts import salt_forks
from support.hosts.salt_modes import configure
from support.waiting import until

pytestmark = pytest.mark.root


def forks(server: psutil.Process) -> list[psutil.Process]:
    """Return the forks of the process that has imported Salt.

    With Python 3.14, that process has one more child, which is left out.
    """
    return [one for one in server.children() if not any("resource_tracker" in word for word in one.cmdline())]


def test_fork_ends_with_its_program(tmp_path: Path) -> None:
    config = configure(tmp_path / "salt", None).parent
    with tempfile.TemporaryDirectory(prefix="salts-") as folder, salt_forks.served(Path(folder)) as programs:
        until(lambda: (programs / "socket").exists(), "Salt is imported", patience=120)
        (server,) = (one for one in psutil.Process().children() if "serve" in one.cmdline())
        command = [str(programs / "salt-call"), "-c", str(config), "test.sleep", "600"]
        with subprocess.Popen(command) as program:
            until(lambda: forks(server))
            (fork,) = forks(server)
            assert fork.is_running() and program.poll() is None
            program.kill()
        until(lambda: not fork.is_running())
