"""Files about environments' health: below ``/run``, for this boot only, owned by root.

``<run>/health/<name>.json``
    the judgement, and the judged process. The watch writes it; the list of environments reads it.
``<run>/health/<name>.up``
    exists while the environment is healthy (or runs, if it has no check). Environments that name it in ``after`` wait
    for this file.
``<run>/health/<name>.condemned``
    exists from the time when the watch ends an unhealthy environment until the environment is healthy again. During
    this time, restarts count as restarts after a crash, regardless of how long the environment ran.

This module doesn't judge.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.environment.health.state import Judgement
from netspace.layout import Layout


class HealthVerdict(msgspec.Struct, frozen=True):
    """A judgement on the process *pid*.

    ``ticks`` is the start time of the process (proc(5), field 22 of ``stat``). ``since`` is the time of the judgement,
    in seconds since the epoch.
    """

    judgement: Judgement
    pid: int
    ticks: int
    since: float


def folder(layout: Layout) -> Path:
    return layout.run / "health"


def up(layout: Layout, name: str) -> Path:
    return folder(layout) / f"{name}.up"


def condemned(layout: Layout, name: str) -> Path:
    return folder(layout) / f"{name}.condemned"


def ill(layout: Layout, name: str) -> Path:
    return folder(layout) / f"{name}.ill"


def ready(layout: Layout) -> Path:
    """Return the path of the file with the watch's PID. The watch writes the file when it has begun to probe."""
    return folder(layout) / ".watch"


def _path(layout: Layout, name: str) -> Path:
    return folder(layout) / f"{name}.json"


def write(layout: Layout, name: str, verdict: HealthVerdict) -> None:
    """Replace the verdict atomically. ``/run`` is memory, so nothing is synced."""
    known = verdict.judgement
    record: dict[str, Any] = {"state": known.state, "failures": known.failures, "detail": known.detail}
    record |= {"pid": verdict.pid, "ticks": verdict.ticks, "since": verdict.since}
    aside = folder(layout) / f".{name}.json"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(record).encode())
    finally:
        os.close(fd)
    os.rename(aside, _path(layout, name))


def read(layout: Layout, name: str) -> HealthVerdict | None:
    """Return the verdict; None if there is none, or it is invalid."""
    try:
        with open(_path(layout, name), "rb") as stream:
            record: Any = json.loads(stream.read(65536))
        judgement = Judgement(record["state"], int(record["failures"]), str(record["detail"]))
        verdict = HealthVerdict(judgement, int(record["pid"]), int(record["ticks"]), float(record["since"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return verdict if judgement.state in ("starting", "healthy", "unhealthy") else None


def clear(layout: Layout, names: Iterable[str]) -> None:
    """Remove the verdicts and marks of stopped environments, so that they don't count as healthy."""
    for name in names:
        for path in (up(layout, name), ill(layout, name), _path(layout, name), condemned(layout, name)):
            files.remove(path)


def clear_all(layout: Layout) -> None:
    """Remove all verdicts and marks.

    Call this function only when no watch runs, since a watch could write a mark again.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder(layout)):
            files.remove(folder(layout) / name)


def mark(path: Path, there: bool) -> None:
    """Create or remove a mark: an empty file that says, for instance, that an environment is healthy."""
    if there:
        path.touch(mode=0o600)
    else:
        path.unlink(missing_ok=True)
