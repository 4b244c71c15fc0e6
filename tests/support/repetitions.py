"""Promises where time or chance plays a part: a test that is marked with one of them is run several times in a row.

How often: ``NETSPACE_REPETITIONS``, once if that isn't set. What a module's tests share, such as a host with its
broker, is made once for all of them.
"""

from __future__ import annotations

import os

import pytest

PROMISES = ("revocation", "replay", "exhaustion")
REPETITIONS = int(os.environ.get("NETSPACE_REPETITIONS", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if any(metafunc.definition.get_closest_marker(promise) for promise in PROMISES):
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(REPETITIONS))
