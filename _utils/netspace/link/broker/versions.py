"""Versions of RabbitMQ: which one is installed, and whether netspace can run a node of it."""

from __future__ import annotations

import re
from pathlib import Path

from netspace.errors import NetspaceError

SERVERS = Path("/usr/lib/rabbitmq/lib")
UNKNOWN = (4, 3)
"""The first RabbitMQ that netspace runs no node of.

The guard (:mod:`netspace.link.broker.plugin`) works within 4.3: the attacks on the broker were tried there. But 4.3's
queues deliver urgent messages before all others, so one sender could keep those of others waiting for ever.
"""


def server(folder: Path = SERVERS) -> tuple[int, ...]:
    """Return the version of the newest installed RabbitMQ; empty if none is installed."""
    found = [
        re.fullmatch(r"rabbitmq_server-(\d+)\.(\d+)\.(\d+)", path.name) for path in folder.glob("rabbitmq_server-*")
    ]
    return max((tuple(int(part) for part in one.groups()) for one in found if one), default=())


def check(version: tuple[int, ...]) -> None:
    """Check that netspace can run a node of RabbitMQ *version*.

    :raises NetspaceError: netspace can't run this version.
    """
    if version >= UNKNOWN:
        shown = ".".join(map(str, version))
        raise NetspaceError(
            f"RabbitMQ {shown}: with it, one sender could keep the mail of others waiting for ever, so the broker "
            "isn't started; install RabbitMQ 4.0 (Debian 13 has it)"
        )
