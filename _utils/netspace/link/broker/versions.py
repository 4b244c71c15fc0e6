"""Versions of RabbitMQ: which one is installed, whether netspace can run a node of it, and which data it can read."""

from __future__ import annotations

import re
from pathlib import Path

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import first_start

SERVERS = Path("/usr/lib/rabbitmq/lib")
UNKNOWN = (4, 4)
"""The first RabbitMQ that netspace runs no node of: nobody has attacked its guard there (:mod:`.plugin`)."""
NEEDED = {(4, 3): "rabbitmq_4.2.0"}
"""By version: the feature flag without which it can't read a node's data. Sources: RabbitMQ's ``rabbit_core_ff``, where
such a flag is ``required``, and the release notes of 4.3."""


def server(folder: Path = SERVERS) -> tuple[int, ...]:
    """Return the version of the newest installed RabbitMQ; empty if none is installed."""
    found = [
        re.fullmatch(r"rabbitmq_server-(\d+)\.(\d+)\.(\d+)", path.name) for path in folder.glob("rabbitmq_server-*")
    ]
    return max((tuple(int(part) for part in one.groups()) for one in found if one), default=())


def check_node(layout: Layout) -> None:
    """Check that netspace can run a node of the installed RabbitMQ with the data that the host has.

    :raises NetspaceError: netspace can't run this version, or this version can't read the data.
    """
    version = server()
    check(version)
    if not first_start.unfinished(layout):  # else its data are deleted
        check_data(version, first_start.data(layout), layout.instance)


def check(version: tuple[int, ...]) -> None:
    """Check that netspace can run a node of RabbitMQ *version*.

    :raises NetspaceError: netspace can't run this version.
    """
    if version >= UNKNOWN:
        raise NetspaceError(
            f"RabbitMQ {_shown(version)}: netspace's guard was not tried with it, so the broker isn't started; install "
            "RabbitMQ 4.0 or 4.3"
        )


def check_data(version: tuple[int, ...], data: Path, instance: str) -> None:
    """Check that RabbitMQ *version* can read a node's *data*. Otherwise the node would fail at each start.

    :param data: the folder of the node's data. Data without a list of feature flags are accepted: the node has not
        started with them yet.
    :raises NetspaceError: this version can't read these data.
    """
    try:
        flags = (data / f"{instance}@localhost-feature_flags").read_text(errors="replace")
    except OSError:
        return
    for since, flag in NEEDED.items():
        if version >= since and flag not in flags:
            raise NetspaceError(
                f"RabbitMQ {_shown(version)}: it can't read the mail in {data}, which an older version wrote; "
                "install that version again until the mail is read, or move the folder away"
            )


def check_origin(version: tuple[int, ...], origin: tuple[int, ...], archive: Path) -> None:
    """Check that RabbitMQ *version* can read the data in an *archive* that was made with RabbitMQ *origin*.

    :raises NetspaceError: it can't: an upgrade to it needs a version in between.
    """
    for since in NEEDED:
        before = (since[0], since[1] - 1)
        if version >= since and origin < before:
            raise NetspaceError(
                f"{archive}: made with RabbitMQ {_shown(origin)}, whose mail RabbitMQ {_shown(version)} can't read; "
                "restore it where that version is installed"
            )


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
