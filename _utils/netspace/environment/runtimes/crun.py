"""``crun``: the default. Small and fast; leaves no process of its own beside the program."""

from __future__ import annotations

from netspace.environment import runtimes

PROGRAM = PACKAGE = "crun"
RUNS = "images"
OWN_KERNEL = False
Settings = runtimes.Settings
LACKS = ("hybrid",)
FIXED_NAMES = False
ENTRIES = ("{}",)


def options(settings: runtimes.Settings) -> tuple[str, ...]:
    return ()
