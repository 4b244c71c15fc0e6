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
    """Remove Salt's handlers of log messages: at exit they would write to a stream that pytest has closed."""
    logging = sys.modules.get("salt._logging")
    if logging is not None:
        logging.shutdown_temp_handler()
