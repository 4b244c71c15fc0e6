"""Fixtures of the fleet's tests. A file counts as complete as soon as it is written, so that no test has to wait."""

from __future__ import annotations

import pytest

from netspace.fleet import in_force


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force, "UNCHANGED", 0)
