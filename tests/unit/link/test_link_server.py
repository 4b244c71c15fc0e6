"""Versions of RabbitMQ that netspace runs a node of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.link.broker import versions


def test_newest_installed_server_is_found(tmp_path: Path) -> None:
    assert versions.server(tmp_path) == ()
    for name in ("rabbitmq_server-4.0.5", "rabbitmq_server-4.0.10", "rabbitmq_server-broken"):
        (tmp_path / name).mkdir()
    assert versions.server(tmp_path) == (4, 0, 10)


@pytest.mark.parametrize("version", [(4, 4, 0), (4, 10, 6), (5, 0, 0)])
def test_server_that_the_guard_does_not_know_is_refused(version: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match=rf"^RabbitMQ {'.'.join(map(str, version))}: .*; install RabbitMQ 4.0"):
        versions.check(version, tmp_path)


@pytest.mark.parametrize("version", [(), (4, 0, 5), (4, 3, 6)])
def test_server_that_is_not_known_to_fail_is_started(version: tuple[int, ...], tmp_path: Path) -> None:
    versions.check(version, tmp_path / "absent")


@pytest.mark.parametrize(
    ("version", "features", "opens"),
    [
        ((4, 0, 5), "[khepri_db,'rabbitmq_4.0.0'].", True),
        ((4, 3, 5), "[khepri_db,'rabbitmq_4.0.0'].", False),
        ((4, 3, 5), "[khepri_db,'rabbitmq_4.0.0','rabbitmq_4.2.0'].", True),
    ],
)
def test_store_of_an_older_server_is_not_opened(
    version: tuple[int, ...], features: str, opens: bool, tmp_path: Path
) -> None:
    """RabbitMQ 4.3.0 opens stores of 4.2 only, says its release notes."""
    (tmp_path / "netspace@localhost-feature_flags").write_text(features)
    if opens:
        versions.check(version, tmp_path)
        return
    with pytest.raises(NetspaceError, match=rf"^{tmp_path}: RabbitMQ 4.3.5 can't open .*; install the older one"):
        versions.check(version, tmp_path)


def test_pipe_in_place_of_a_store_is_not_waited_for(tmp_path: Path) -> None:
    """The folder belongs to the node's user, and it is root who looks."""
    os.mkfifo(tmp_path / "netspace@localhost-feature_flags")
    with pytest.raises(NetspaceError, match="can't open"):
        versions.check((4, 3, 5), tmp_path)
