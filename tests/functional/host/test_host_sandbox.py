"""The sandbox of tests and benchmarks, ended by a signal to its shell alone: what runs inside goes with it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from support.waiting import until

SANDBOX = Path(__file__).parents[3] / "scripts/sandbox"


def running(mark: str) -> bool:
    """Return whether a process has *mark* among its arguments."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "cmdline").read_text().split("\0"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sandbox_whose_shell_is_ended_takes_others_along(number: signal.Signals, tmp_path: Path) -> None:
    ready, mark = tmp_path / "ready", f"within-{number.name}"
    program = 'touch /var/lib/netspace/kept "$1"; exec sleep 600'
    other = subprocess.Popen([SANDBOX, "sh", "-c", program, "sh", tmp_path / "other", "other"])
    shell = subprocess.Popen([SANDBOX, "sh", "-c", 'touch "$1"; while :; do sleep 0.1; done', "sh", ready, mark])
    try:
        until(lambda: ready.exists() and (tmp_path / "other").exists())
        shell.send_signal(number)
        shell.wait(60)
        until(lambda: not running(mark))
        (sleeper,) = (one.parent for one in Path("/proc").glob("[0-9]*/comm") if one.read_text() == "sleep\n" and
                      "600" in (one.parent / "cmdline").read_text())  # fmt: skip
        assert (sleeper / "root/var/lib/netspace/kept").exists()
    finally:
        for one in (shell, other):
            one.terminate()
            one.wait(60)
