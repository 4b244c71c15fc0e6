"""The line that Salt logs for a failed state says why it failed, and fits a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from salt.state import format_log

from netspace.plugin import failure_log

CHANGES = {f"web{number}": "create" for number in range(50)}
COMMENT = "environment till: image tar:/srv/till.tar: No such file or directory;\n  put the image there"


def logged(caplog: pytest.LogCaptureFixture, state: dict[str, Any]) -> list[str]:
    caplog.clear()
    with caplog.at_level("INFO", "salt.state"):
        format_log(state)
    return [record.getMessage() for record in caplog.records]


def test_failure_after_changes_is_logged_by_its_comment(caplog: pytest.LogCaptureFixture) -> None:
    state = {"name": "environments", "result": False, "changes": dict(CHANGES), "comment": COMMENT}
    assert logged(caplog, state) == [str(CHANGES)], "Salt by itself"
    failure_log.tell(state)
    assert logged(caplog, state) == [COMMENT]
    assert logged(caplog, state) == [str(CHANGES)], "each time that it is told, and no other line"


@pytest.mark.parametrize("other", [{"result": True}, {"result": None}, {"changes": {}}])
def test_state_without_failed_changes_is_logged_as_ever(
    other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    state = {"name": "environments", "result": False, "changes": dict(CHANGES), "comment": COMMENT, **other}
    before = logged(caplog, state)
    failure_log.tell(state)
    assert logged(caplog, state) == before


def test_states_that_salt_never_logs_take_no_memory() -> None:
    for number in range(1000):
        failure_log.tell({"result": False, "changes": {str(number): "create"}, "comment": COMMENT})
    assert len(failure_log._comments._by_text) <= failure_log._MOST
