"""The documentation's script for an init other than systemd runs unchanged, with the Python of the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.environments.supervised import daemon_pid, kill_daemon, reap, shell, standing_pid
from support.hosts import snapshot
from support.waiting import until

from netspace.layout import Layout
from netspace.supervision.daemon import daemon, presence
from netspace.supervision.daemon.client import DaemonSupervisor

pytestmark = pytest.mark.root

PAGE = Path(__file__).resolve().parents[3] / "docs/supervision.md"
PYTHON = "/opt/saltstack/salt/bin/python3"
STAY = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


def script(folder: Path, word: str) -> Path:
    """A function that writes the page's script that contains *word* to a file, and returns the file's path."""
    (text,) = [block for block in re.findall(r"```sh\n(#!.*?)```", PAGE.read_text(), re.DOTALL) if word in block]
    assert PYTHON in text
    path = folder / "script"
    path.write_text(text.replace(PYTHON, sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def rebooted(direct: DaemonSupervisor, layout: Layout) -> DaemonSupervisor:
    """A host after a reboot. Before, service ``a`` ran and service ``b`` was stopped."""
    direct.define([shell("a", STAY), shell("b", STAY)])
    assert direct.start(["a", "b"]) == {}
    assert direct.stop(["b"]) == {}
    pid = direct.observe()["a"].pid
    kill_daemon(layout)
    os.kill(pid, signal.SIGKILL)
    reap()
    for entry in layout.run.rglob("*"):
        if not entry.is_dir():
            entry.unlink()
    assert direct.observe()["a"].state == "stopped"
    return direct


def runs(direct: DaemonSupervisor) -> bool:
    return {name: status.state for name, status in direct.observe().items()} == {"a": "running", "b": "stopped"}


STARTS = {
    "LSB": ("INIT INFO", ["{script}", "start"]),
    # What it is run by is OpenRC's; its functions are few.
    "OpenRC": (
        "openrc-run",
        ["/bin/sh", "-ec", "ebegin() { :; }; eend() { return $1; }; . {script}; depend() { :; }; start"],
    ),
}


@pytest.mark.parametrize("init", STARTS)
def test_a_script_that_is_run_once_at_boot(
    init: str, rebooted: DaemonSupervisor, layout: Layout, tmp_path: Path
) -> None:
    word, command = STARTS[init]
    path = script(tmp_path, word)
    for _ in range(2):
        done = subprocess.run([part.replace("{script}", str(path)) for part in command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: runs(rebooted))
    until(lambda: standing_pid(layout), "and somebody stands by")


def test_a_supervisor_that_is_an_inits_own(rebooted: DaemonSupervisor, layout: Layout, tmp_path: Path) -> None:
    path = script(tmp_path, "--foreground")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([path], stdout=subprocess.DEVNULL)

    own = start()
    until(lambda: runs(rebooted))
    # Whichever was first: a killed supervisor is followed by the init's, which then has nobody stand by.
    if daemon_pid(layout) != own.pid:
        kill_daemon(layout, heir=own.pid)
    until(lambda: daemon_pid(layout) == own.pid)
    assert standing_pid(layout) == 0
    pid = rebooted.observe()["a"].pid
    own.kill()
    own.wait()
    own = start()
    until(lambda: presence.running(layout) and rebooted.observe()["a"].state == "running")
    assert rebooted.observe()["a"].pid == pid
    if daemon_pid(layout) != own.pid:
        kill_daemon(layout, heir=own.pid)
    until(lambda: daemon_pid(layout) == own.pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: rebooted.observe()["a"].restarts == 1 and runs(rebooted))
    own.terminate()
    assert own.wait(timeout=60) == 0
    rebooted.attend()
    assert runs(rebooted)
    # The script doesn't wait for its `restore`: on a slow host it would meet the next test's supervisor.
    until(lambda: not any("/lib/current restore" in line for line in snapshot.processes().values()), patience=120)


def test_an_inits_own_stays_while_it_has_nothing_to_do(
    direct: DaemonSupervisor, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct.define([shell("a", STAY)])
    monkeypatch.setattr(daemon, "IDLE", 0.1)
    own = os.fork()
    if not own:
        code = 1
        try:
            code = daemon.main(layout, "", foreground=True)
        finally:
            os._exit(code)
    until(lambda: presence.running(layout) and daemon_pid(layout) == own)
    time.sleep(3.0)  # another would have ended after its first look around, which is within a second
    assert os.waitpid(own, os.WNOHANG) == (0, 0)
    os.kill(own, signal.SIGTERM)
    assert os.waitpid(own, 0) == (own, 0)
