"""Repetition of tests whose result depends on time or chance: a marked test runs several times in a row.

``NETSPACE_REPETITIONS`` is the number of runs; the default is one. Fixtures of a module, such as a host with its
broker, are made once for all runs.
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
