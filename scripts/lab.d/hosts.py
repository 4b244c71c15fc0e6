"""Hosts of the lab: start one, find it, switch it off, run a command on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from config import ROOT
from processes import Failed, child, launch, remembered
from tpms import TCTI

PATIENCE = 120.0  # seconds for what takes one or two on a machine that has nothing else to do
COMMAND = 600.0  # seconds for a command of Salt, which takes a few there


class Host:
    """One host of the lab.

    :ivar home: the host's folder, named like the host: configuration, log, disk.
    :ivar daemon: ``salt-master`` or ``salt-minion``.
    """

    shares_kernel = True
    """Whether the host is a set of namespaces on this machine."""
    tcti = TCTI
    """TCTI string by which a program on the host reaches the host's TPM."""

    def __init__(self, home: Path, daemon: str) -> None:
        self.home = home
        self.daemon = daemon

    @property
    def name(self) -> str:
        return self.home.name

    def sandbox(self) -> int:
        """Return the PID of the shell that cleans up after the host; 0 if the host is off."""
        return remembered(self.home / "pid")

    def init(self) -> int:
        """Return the PID, on this machine, of the host's first process; 0 if the host is off or still starts."""
        top = self.sandbox()
        # The shell's child is unshare, which waits for the first process. Before that it has other children.
        first = child(child(top)) if top else 0
        return first if first and _apart(first) and (self.home / "ready").exists() else 0

    def state(self) -> str:
        """Return whether the host is on, in words."""
        return "on" if self.init() else "off"

    def start(self, lock: int) -> None:
        """Start the host, and wait until its network can be connected.

        :param lock: descriptor of the lab's lock.
        """
        launched = None
        if not self.sandbox():
            (self.home / "ready").unlink(missing_ok=True)
            inside = [sys.executable, "-B", str(Path(__file__).with_name("inside.py")), str(self.home), self.daemon]
            with (self.home / "console").open("ab") as console:
                launched = launch(self.home / "pid", [str(ROOT / "scripts/sandbox"), *inside], lock, console)
        deadline = time.monotonic() + PATIENCE
        while not (self.home / "ready").exists():
            ended = not self.sandbox() and (launched is None or launched.poll() is not None)
            if ended or time.monotonic() > deadline:
                raise Failed(f"{self.name}: it did not start; see {self.home / 'console'}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the host at once, as a power failure does, and wait until the machine has cleaned up after it."""
        top = self.sandbox()
        first = child(child(top)) if top else 0
        if first and _apart(first):
            os.kill(first, signal.SIGKILL)
        elif top:
            os.kill(top, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while remembered(self.home / "pid"):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: process {top} does not end; end it by hand, then repeat the command")
            time.sleep(0.02)
        (self.home / "pid").unlink(missing_ok=True)

    def enter(self, command: Sequence[str]) -> NoReturn:
        """Replace this process by *command* on the host: in its namespaces and control groups, with this terminal."""
        first = self.init()
        if not first:
            raise Failed(f"{self.name}: it is off; start it: lab start {self.name}")
        for procs in _control_groups(first):
            procs.write_text(f"{os.getpid()}\n")
        os.environ.setdefault("HOME", "/root")
        venv = str(Path(sys.executable).parent)
        if venv not in os.environ["PATH"].split(":"):
            os.environ["PATH"] = f"{venv}:{os.environ['PATH']}"
        os.execvp("nsenter", ["nsenter", f"--target={first}", "--all", f"--wd={self.home}", "--", *command])  # noqa: S606

    def run(self, *command: str, timeout: float = COMMAND) -> subprocess.CompletedProcess[str]:
        """Run a command on the host; return its exit code and its output."""
        lab = [sys.executable, "-B", str(Path(__file__).with_name("lab.py")), "sh", self.name, *command]
        try:
            return subprocess.run(lab, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as err:
            raise Failed(
                f"{self.name}: {' '.join(command)}: no end within {timeout:.0f} s; see {self.home}/log"
            ) from err


def _apart(pid: int) -> bool:
    """Return whether a process has a network namespace other than this process's.

    If it has not, its namespaces may be the machine's own.
    """
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def _control_groups(pid: int) -> list[Path]:
    """Return the ``cgroup.procs`` of each control group of a process (cgroups(7), both versions)."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounts[""] = target
        elif kind == "cgroup":
            mounts |= dict.fromkeys(options.split(","), target)
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        procs = Path(mounts.get(controllers.split(",")[0], "/nonexistent") + path) / "cgroup.procs"
        if procs.exists():
            found.append(procs)
    return found


def discard(folder: Path) -> None:
    """Remove the lab's folder.

    :raises Failed: another file system is mounted below the folder; its files must not be removed.
    """
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    below = [target for target in mounted if target.startswith(f"{folder}/")]
    if below:
        raise Failed(f"{folder}: {below[0]} is mounted; unmount it, then repeat the command")
    shutil.rmtree(folder, ignore_errors=True)
