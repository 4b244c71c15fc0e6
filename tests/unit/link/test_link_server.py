"""RabbitMQ versions with which netspace can run a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import first_start, versions


def test_newest_installed_server_is_found(tmp_path: Path) -> None:
    assert versions.server(tmp_path) == ()
    for name in ("rabbitmq_server-4.0.5", "rabbitmq_server-4.0.10", "rabbitmq_server-broken"):
        (tmp_path / name).mkdir()
    assert versions.server(tmp_path) == (4, 0, 10)


@pytest.mark.parametrize("version", [(4, 4, 0), (4, 10, 1), (5, 0, 0)])
def test_server_that_the_guard_was_not_tried_with_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(NetspaceError, match=rf"^RabbitMQ {'.'.join(map(str, version))}: .*; install RabbitMQ 4.0"):
        versions.check(version)


@pytest.mark.parametrize("version", [(), (4, 0, 5), (4, 2, 9), (4, 3, 6)])
def test_server_that_is_not_known_to_fail_is_started(version: tuple[int, ...]) -> None:
    versions.check(version)


OLD, NEW = "[quorum_queue,\n 'rabbitmq_4.0.0',\n user_limits].\n", "[khepri_db,\n 'rabbitmq_4.2.0'].\n"


@pytest.mark.parametrize(
    ("version", "flags"),
    [((4, 0, 5), OLD), ((4, 2, 9), OLD), ((4, 3, 6), NEW), ((4, 3, 6), None)],
    ids=["same", "next", "migrated", "new"],
)
def test_data_that_a_server_can_read_are_accepted(tmp_path: Path, version: tuple[int, ...], flags: str | None) -> None:
    if flags is not None:
        (tmp_path / "shop@localhost-feature_flags").write_text(flags)
    versions.check_data(version, tmp_path, "shop")


def test_data_that_a_server_cannot_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shop@localhost-feature_flags").write_text(OLD)
    with pytest.raises(NetspaceError, match=f"4.3.6: it can't read the mail in {tmp_path}, .* move the"):
        versions.check_data((4, 3, 6), tmp_path, "shop")


def test_data_of_an_unfinished_first_start_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of an unfinished first start are deleted before the next start, whatever version made them."""
    layout = Layout(instance="shop", root=tmp_path)
    layout.broker.mkdir(parents=True)
    first_start.begin(layout)
    first_start.data(layout).mkdir(parents=True)
    (first_start.data(layout) / "shop@localhost-feature_flags").write_text(OLD)
    monkeypatch.setattr(versions, "server", lambda: (4, 3, 6))
    versions.check_node(layout)
    first_start.finish(layout)
    with pytest.raises(NetspaceError, match="can't read the mail"):
        versions.check_node(layout)


@pytest.mark.parametrize("version", [(4, 0, 5), (4, 2, 1), (4, 3, 6)])
def test_archive_of_the_same_version_is_accepted(version: tuple[int, ...]) -> None:
    versions.check_origin(version, version, Path("/srv/mail.tar"))


@pytest.mark.parametrize("origin", [(4, 0, 5), (4, 1, 9)])
def test_archive_that_needs_a_version_between_is_refused(origin: tuple[int, ...]) -> None:
    with pytest.raises(NetspaceError, match=r"^/srv/mail\.tar: made with RabbitMQ 4\.\d\.\d, whose mail"):
        versions.check_origin((4, 3, 6), origin, Path("/srv/mail.tar"))
    versions.check_origin((4, 2, 1), origin, Path("/srv/mail.tar"))
