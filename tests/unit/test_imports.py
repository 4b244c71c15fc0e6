"""Modules that netspace's own processes don't load: each costs every such process time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netspace.environment.runtimes import Runtime
from netspace.interface.endpoints import Endpoint, Endpoints
from netspace.layout import Layout
from netspace.supervision.service import Service

LIBRARY = Path(__file__).resolve().parents[2] / "_utils"
HEAVY = ("asyncio", "dataclasses", "inspect", "random", "typing_extensions")
"""``dataclasses`` loads ``inspect``, which loads ``ast``: 12 ms and 2 MB in each process."""
LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
from netspace import __main__ as commands
if sys.argv[2] != "netspace.supervision.daemon.daemon":
    commands._import_msgspec()
__import__(sys.argv[2])
print(*(name for name in sys.argv[3:] if sys.modules.get(name) is not None))
"""


def loaded(module: str, code: str = LOADED) -> list[str]:
    """Return which of the heavy modules a process loads that imports this module of the library."""
    command = [sys.executable, "-I", "-c", code, str(LIBRARY), module, *HEAVY]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout.split()


@pytest.mark.parametrize(
    "module",
    ["supervision.daemon.daemon", "host.host", "host.peer.process", "host.keeper"],
)
def test_process_loads_no_heavy_module(module: str) -> None:
    assert loaded(f"netspace.{module}") == []


def test_health_loads_only_what_its_threads_need() -> None:
    assert set(loaded("netspace.environment.health.watcher")) <= {"random"}  # of tempfile


def test_typing_extensions_can_be_imported_after() -> None:
    code = LOADED.replace("__import__(sys.argv[2])", "import typing_extensions")
    assert "typing_extensions" in loaded("", code)


@pytest.mark.parametrize(
    "one, same, other",
    [
        (Endpoints(), Endpoints(made_as="x"), Endpoints(Endpoint("eth0", "", 1500))),
        (Endpoint("a", "", 1, secret="/x"), Endpoint("a", "", 1, secret="/y"), Endpoint("b", "", 1)),
        (Runtime("crun"), Runtime("crun", error="gone"), Runtime("runsc")),
        (Layout("x"), Layout("x"), Layout("y")),
        (Service("a", ("/x",)), Service("a", ("/x",), limits={}), Service("b", ("/x",))),
    ],
)
def test_values_are_compared_by_what_counts(one: object, same: object, other: object) -> None:
    assert one == same and not one != same  # noqa: SIM202 (both operators are tested)
    assert one != other and not one == other  # noqa: SIM201
