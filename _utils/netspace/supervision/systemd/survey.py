"""Statuses of many units with little work: one question to systemd, and small files. Changes nothing.

systemd needs 20 microseconds for each property of a unit, and a status has seven of them. But for nearly all units of a
host two facts are enough: the unit is active, and no end of it was noted since its start was last requested. Then the
service runs as it was started. Its PID file has the process, and the kernel has the time at which the process began.

Only detached services have such notes (``unit_file.NOTE``). All other services, and those that ended once, are left
out. systemd is asked about these one by one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from netspace import files
from netspace.layout import Layout
from netspace.supervision import memory_events, process
from netspace.supervision.cgroup import payload_cgroups
from netspace.supervision.service import State, Status
from netspace.supervision.systemd import dbus, unit_file

_READ = os.O_RDONLY | os.O_CLOEXEC
_MOST = 64 * 1024  # bytes of a unit file
_HERTZ = os.sysconf("SC_CLK_TCK")
_HEADER = unit_file.HEADER.encode()
_PID_FILE = b"\nPIDFile="


def running(layout: Layout, folder: Path) -> dict[str, Status]:
    """Return the status of each detached service that runs, and that hasn't ended since its start was last requested.

    The result is empty if systemd doesn't answer.

    :param folder: the folder of the unit files.
    """
    prefix, suffix = layout.service(""), ".service"
    try:
        units = dbus.active(f"{prefix}*{suffix}")
    except (OSError, ValueError):
        return {}
    noted = _noted(unit_file.ended(layout, "-").parent)
    found: dict[str, Status] = {}
    cgroup = payload_cgroups(layout)
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    kills = memory_events.reader(f"/{layout.instance}.slice")
    with files.folder(folder) as defined, files.folder("/proc") as processes:
        if defined is None or processes is None:
            return {}
        for unit in units:
            name = unit[len(prefix) : -len(suffix)]
            if name in noted or (pid_file := _pid_file(unit, defined)) is None:
                continue
            pid = _pid(pid_file)
            letter, ticks = process.state(pid, processes) if pid > 0 else ("", 0)
            if letter not in ("", "Z", "X"):
                state: State = "frozen" if letter == "T" else "running"
                found[name] = Status(state, pid, booted + ticks / _HERTZ, 0, "", kills(cgroup(name)))
    return found


def _noted(folder: Path) -> set[str]:
    """Return the names of the services whose end was noted."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _pid_file(unit: str, folder: int) -> bytes | None:
    """Return the PID file that a unit file of netspace's names; None if it names none, or isn't netspace's."""
    try:
        fd = os.open(unit, _READ, dir_fd=folder)
        try:
            content = os.read(fd, _MOST)
        finally:
            os.close(fd)
    except OSError:
        return None
    path = content.partition(_PID_FILE)[2].partition(b"\n")[0] if content.startswith(_HEADER) else b""
    return path.replace(b"%%", b"%") or None


def _pid(file: bytes) -> int:
    """Return the PID in a file; 0 if there is none."""
    try:
        fd = os.open(file, _READ)
        try:
            return int(os.read(fd, 32))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return 0
