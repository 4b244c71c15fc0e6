"""``crun``: the default. Small and fast; leaves no process of its own beside the program."""

from __future__ import annotations

from netspace.environment import runtimes

PROGRAM = PACKAGE = "crun"
RUNS = "images"
OWN_KERNEL = False
Settings = runtimes.Settings
LACKS = ("hybrid",)
FIXED_NAMES = False
LEAST = {"pids": 2}  # it forks within the limit
ENTRIES = ("{}",)


def options(settings: runtimes.Settings) -> tuple[str, ...]:
    return ()
