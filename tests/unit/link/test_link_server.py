"""RabbitMQ versions with which netspace can run a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.link.broker import versions


def test_newest_installed_server_is_found(tmp_path: Path) -> None:
    assert versions.server(tmp_path) == ()
    for name in ("rabbitmq_server-4.0.5", "rabbitmq_server-4.0.10", "rabbitmq_server-broken"):
        (tmp_path / name).mkdir()
    assert versions.server(tmp_path) == (4, 0, 10)


@pytest.mark.parametrize("version", [(4, 3, 0), (4, 3, 6), (5, 0, 0)])
def test_server_that_the_guard_was_not_tried_with_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(NetspaceError, match=rf"^RabbitMQ {'.'.join(map(str, version))}: .*; install RabbitMQ 4.0"):
        versions.check(version)


@pytest.mark.parametrize("version", [(), (4, 0, 5), (4, 2, 9)])
def test_server_that_is_not_known_to_fail_is_started(version: tuple[int, ...]) -> None:
    versions.check(version)
