"""Fleets' files in tests are written at once, so that nothing has to wait for their end."""

from __future__ import annotations

import pytest

from netspace.fleet import in_force


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force, "UNCHANGED", 0)
