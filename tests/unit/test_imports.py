"""Modules that netspace's own processes don't load: each costs every such process time and memory."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from netspace import __main__ as commands
from netspace.environment.runtimes import Runtime
from netspace.interface.endpoints import Endpoint, Endpoints
from netspace.layout import Layout
from netspace.supervision.service import Service

LIBRARY = Path(__file__).resolve().parents[2] / "_utils"
HEAVY = (
    "asyncio",
    "dataclasses",
    "inspect",
    "logging",
    "platform",
    "random",
    "shutil",
    "tempfile",
    "typing_extensions",
)
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


PARSED = 'from netspace.spec import parse; parse.interface({"kind": "veth", "publish": ["80:80"]})'


def loaded(module: str, code: str = LOADED) -> list[str]:
    """Return which of the heavy modules a process loads that imports this module of the library."""
    command = [sys.executable, "-I", "-c", code, str(LIBRARY), module, *HEAVY]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "supervision.daemon.daemon",
        "host.host",
        "interface.reconciler",
        "environment.reconciler",
        "environment.operations",
    ],
)
def test_process_loads_no_heavy_module(module: str) -> None:
    assert loaded(f"netspace.{module}") == []


@pytest.mark.parametrize("module", ["environment.health.watcher", "host.peer.process", "host.keeper"])
def test_service_loads_only_what_its_threads_need(module: str) -> None:
    assert set(loaded(f"netspace.{module}")) <= {"logging", "random", "shutil", "tempfile"}


@pytest.mark.parametrize("module", ["typing_extensions", "platform"])
def test_left_out_module_can_be_imported_after(module: str) -> None:
    code = LOADED.replace("__import__(sys.argv[2])", f"import {module}")
    assert module in loaded("", code)


def test_stand_in_of_platform_tells_the_same_system() -> None:
    assert commands._Platform("platform").system() == platform.system()


def test_declared_interface_loads_its_kind_alone() -> None:
    code = LOADED.replace("__import__(sys.argv[2])", PARSED)
    kinds = [f"netspace.interface.kinds.{kind}" for kind in ("veth", "tap", "bridge", "wireguard", "none")]
    command = [sys.executable, "-I", "-c", code, str(LIBRARY), "", *kinds]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["netspace.interface.kinds.veth"]


@pytest.mark.parametrize("words, there", [(["check"], ["check"]), (["list", "check"], ["check", "list"]), ([], None)])
def test_parser_knows_the_commands_that_the_arguments_name(words: list[str], there: list[str] | None) -> None:
    parser = commands._parser("netspace", words)
    known = next(action.choices for action in parser._actions if action.dest == "command")
    assert known is not None and sorted(known) == sorted(there or commands._COMMANDS)


def test_command_that_stays_keeps_looking_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual = gc.get_threshold()
    monkeypatch.setattr(commands, "main", lambda program: seen.append(gc.get_threshold()[0]) or 0)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    try:
        for word in ("peer", "apply"):
            monkeypatch.setattr(sys, "argv", ["netspace", word])
            with pytest.raises(SystemExit):
                commands.run()
    finally:
        gc.set_threshold(*usual)
    assert seen[0] == usual[0] < seen[1]


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
