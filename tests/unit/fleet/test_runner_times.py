"""Runners that wait for hosts refuse a time limit that isn't a number of whole seconds, before they ask anybody."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import checkout

CALLS: dict[str, tuple[str, Callable[[Any, object], Any]]] = {
    "watch": ("fleet", lambda runner, given: runner.watch(timeout=given)),
    "status": ("fleet", lambda runner, given: runner.status(timeout=given)),
    "plan": ("fleet", lambda runner, given: runner.plan(timeout=given)),
    "apply": ("fleet", lambda runner, given: runner.apply("none", timeout=given)),
    "drift": ("fleet", lambda runner, given: runner.drift(timeout=given)),
    "join": ("fleet", lambda runner, given: runner.join("h1", timeout=given)),
    "replace": ("fleet", lambda runner, given: runner.replace("h1", timeout=given)),
    "resume": ("fleet", lambda runner, given: runner.resume(timeout=given)),
    "certify": ("link", lambda runner, given: runner.certify("h1", "h1", timeout=given)),
    "exchange_seals": ("link", lambda runner, given: runner.exchange_seals(timeout=given)),
}


class Nobody:
    """A stand-in for the declaration and the minions. It only names targets: any other use fails."""

    def targeted(self, *target: str) -> list[str]:
        return ["h1"]


def runner(name: str, folder: Path) -> Any:
    """Return a runner's module, as Salt's loader makes it."""
    spec = importlib.util.spec_from_file_location("a_runner", checkout.ROOT / f"_runners/netspace_{name}.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__opts__ = {"cachedir": str(folder)}
    module._declaration = module._minions = Nobody
    return module


@pytest.mark.parametrize("given", [0.5, "5s", -1, True, 10**6], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_time_that_is_no_whole_seconds_is_refused(call: str, given: object, tmp_path: Path) -> None:
    name, ask = CALLS[call]
    answer = ask(runner(name, tmp_path), given)
    assert answer["retcode"] == 1
    assert answer["error"].startswith(f"timeout: {str(given)!r}: expected 1 to "), answer
