"""The output ``netspace_text`` shows a text unchanged, except characters that control a terminal."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from support import checkout


@pytest.fixture
def outputter() -> Any:
    spec = importlib.util.spec_from_file_location("netspace_text", checkout.ROOT / "_output/netspace_text.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__salt__ = {"nested": lambda ret, **kwargs: f"nested {ret!r} {sorted(kwargs)}"}
    return module.output


def test_text_is_shown_as_it_is(outputter: Any) -> None:
    assert outputter({"local": "a\n\tb\n"}) == "a\n\tb"
    assert outputter("digraph {}") == "digraph {}", "a runner's return has no minion"
    assert outputter({"h1": "a\n", "h2": "b"}) == "a\nb"


def test_control_characters_reach_no_terminal(outputter: Any) -> None:
    assert outputter({"h1": "a\x1b[2Jb\u202ec\n"}) == "a?[2Jb?c"


@pytest.mark.parametrize("ret", [{}, {"h1": {"a": 1}}, {"h1": "a", "h2": None}, [], 3])
def test_other_returns_are_left_to_nested(outputter: Any, ret: object) -> None:
    assert outputter(ret, indent=2) == f"nested {ret!r} ['indent']"
