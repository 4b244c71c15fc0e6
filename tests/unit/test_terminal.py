"""The judge of what an operator reads at a terminal: it finds wide lines, and numbers that need a calculator."""

from __future__ import annotations

import pytest
from support.hosts.terminal import Read, troubles


@pytest.mark.parametrize(
    "line",
    [
        "x" * 81,
        "表" * 41,  # two columns each
        "since 1764570000.5",
        "since: 1764570000",
        "memory 67108864",
        "uses 1048576 bytes",
        "restarted 86400 s ago",
    ],
)
def test_line_that_is_wide_or_needs_a_calculator_is_found(line: str) -> None:
    assert len(list(troubles(Read("x", 0, 0.0, ["fine", line])))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "x" * 80,
        "表" * 40,
        "made 2026-01-31T12:00:00.123456+00:00 (3 h ago)",
        "image sha256:1234567890123456",
        "64 MiB of 128 MiB, 45 s, port 15671",
        "netspace-1764570000.deb",
    ],
)
def test_line_that_people_read_at_once_is_fine(line: str) -> None:
    assert list(troubles(Read("x", 0, 0.0, [line]))) == []
