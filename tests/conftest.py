"""What all tests share."""

from __future__ import annotations

import sys


def pytest_sessionfinish() -> None:
    """Salt keeps what was logged to tell it at exit, when pytest has closed the stream."""
    logging = sys.modules.get("salt._logging")
    if logging is not None:
        logging.shutdown_temp_handler()
