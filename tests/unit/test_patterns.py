"""Regular expressions of the library are compiled when they are first used."""

from __future__ import annotations

import copy
import re

import pytest

from netspace import patterns


def test_pattern_is_compiled_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    real = re.compile
    monkeypatch.setattr(re, "compile", lambda text, flags=0: compiled.append(text) or real(text, flags))
    lazy = patterns.pattern("a+(b)?", re.IGNORECASE)
    assert lazy.pattern == "a+(b)?" and compiled == []
    found = lazy.fullmatch("AAB")
    assert found is not None and found[1] == "B" and compiled == ["a+(b)?"]
    assert lazy.fullmatch("c") is None and compiled == ["a+(b)?"]
    assert copy.copy(lazy).search("xa") is not None


def test_pattern_with_a_mistake_is_an_error_at_its_use() -> None:
    with pytest.raises(re.error):
        patterns.pattern("(").fullmatch("a")
