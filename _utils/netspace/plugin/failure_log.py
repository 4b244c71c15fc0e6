"""Log line of a failed state: a filter lets Salt log the state's comment, and not all its changes as one long line.

Salt logs a failed state as an error, which a terminal shows above the result. If the state changed something before it
failed, Salt logs only the changes, on one line however long. Such a line doesn't mention the failure.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_LOGGER = "salt.state"
_MOST = 64
"""The most failed states whose log line is still to come. Salt logs a state when it returns, so there are few."""


class _Comments(logging.Filter):
    """Filter of Salt's log that replaces the changes of a failed state by the state's comment."""

    def __init__(self) -> None:
        super().__init__()
        self._by_text: dict[str, str] = {}

    def expect(self, changes: str, comment: str) -> None:
        if len(self._by_text) >= _MOST:
            self._by_text.clear()
        self._by_text[changes] = comment

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and not record.args:
            record.msg = self._by_text.pop(record.msg, record.msg)
        return True


_comments = _Comments()


def tell(state: Mapping[str, Any]) -> None:
    """Let Salt log a state's comment if the state failed after it changed something.

    :param state: the state's return, as Salt gets it.
    """
    if state["result"] is False and state["changes"]:
        logging.getLogger(_LOGGER).addFilter(_comments)
        _comments.expect(str(state["changes"]), state["comment"])
