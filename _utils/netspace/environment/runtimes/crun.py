"""``crun``: the default runtime. It is small and fast, and leaves no process beside the program."""

from __future__ import annotations

from netspace.environment import runtimes

PROGRAM = PACKAGE = "crun"
RUNS = "images"
OWN_KERNEL = False
Settings = runtimes.Settings
LACKS = ("hybrid",)
FIXED_NAMES = False
LEAST = {"pids": 2}  # crun itself forks within the limit
ENTRIES = ("{}",)


def options(settings: runtimes.Settings) -> tuple[str, ...]:
    return ()
