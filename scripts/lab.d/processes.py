"""Processes of the lab. Each is found by a file with its PID and start time, so a reused PID isn't mistaken for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO


class Failed(Exception):
    """Error: something in the lab failed; the message has the problem and the remedy."""


def launch(path: Path, command: Sequence[str], lock: int, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that outlives this process; the new process's PID is written into *path*.

    :param lock: descriptor of the lab's lock. The process holds it until the PID is written.
    """
    launcher = [sys.executable, "-B", str(Path(__file__).with_name("launch.py")), str(path), str(lock), *command]
    stream = subprocess.DEVNULL if output is None else output
    return subprocess.Popen(
        launcher, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True, pass_fds=(lock,)
    )


def remember(path: Path, pid: int) -> None:
    """Write a process's PID and start time into *path*."""
    aside = path.with_suffix(".new")
    aside.write_text(f"{pid} {_started(pid)}\n")
    aside.rename(path)


def remembered(path: Path) -> int:
    """Return the PID in *path* if that process still runs, else 0."""
    try:
        pid, _, began = path.read_text().strip().partition(" ")
    except OSError:
        return 0
    return int(pid) if pid.isdigit() and began and _started(int(pid)) == began else 0


def child(pid: int) -> int:
    """Return the first child of a process; 0 if it has none."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(found[0]) if found else 0


def run(*command: str, text: str = "") -> str:
    """Run a command with *text* as its input; return its output.

    :raises Failed: the command failed; the error has its output on stderr.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def works(*command: str) -> bool:
    """Return whether a command exits with 0."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _started(pid: int) -> str:
    """Return the start time of a process, in ticks since boot (proc_pid_stat(5)); "" if the process has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]
