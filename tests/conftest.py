"""Options and fixtures of all tests."""

from __future__ import annotations

import sys

import hypothesis
from support.repetitions import pytest_generate_tests as pytest_generate_tests

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


def pytest_sessionfinish() -> None:
    """Salt keeps what was logged to tell it at exit, when pytest has closed the stream."""
    logging = sys.modules.get("salt._logging")
    if logging is not None:
        logging.shutdown_temp_handler()
