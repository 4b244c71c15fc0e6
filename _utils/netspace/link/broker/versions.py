"""RabbitMQ's versions: the installed one, and whether netspace can run a node of it."""

from __future__ import annotations

import re
from pathlib import Path

from netspace import files
from netspace.errors import NetspaceError

SERVERS = Path("/usr/lib/rabbitmq/lib")
UNKNOWN = (4, 4)
"""The first RabbitMQ that the guard (:mod:`netspace.link.broker.plugin`) does not know.

The guard ends a node whose parser of AMQP 1.0 has other functions than those it knows, while that node starts;
:func:`check` says so before a node is stopped.
"""

OTHER_STORE = (4, 3)
"""The first RabbitMQ that can't open the store of 4.0 and 4.1 (release notes of RabbitMQ 4.3.0)."""

_NEW_STORE = b"rabbitmq_4.2.0"
_FEATURES_BYTES = 65536


def server(folder: Path = SERVERS) -> tuple[int, ...]:
    """Return the version of the newest RabbitMQ that is installed; empty: none is."""
    found = [
        re.fullmatch(r"rabbitmq_server-(\d+)\.(\d+)\.(\d+)", path.name) for path in folder.glob("rabbitmq_server-*")
    ]
    return max((tuple(int(part) for part in one.groups()) for one in found if one), default=())


def check(version: tuple[int, ...], folder: Path) -> None:
    """Check that netspace can run a node of RabbitMQ *version* with what it has stored in *folder*.

    :param folder: the folder of the node's stores, which may not exist yet. RabbitMQ keeps the names of the features
        that a store uses beside it.
    :raises NetspaceError: it can't.
    """
    shown = ".".join(map(str, version))
    if version >= UNKNOWN:
        raise NetspaceError(
            f"RabbitMQ {shown}: netspace's guard within the broker doesn't know this version, so the broker isn't "
            "started; install RabbitMQ 4.0 to 4.3 (Debian 13 has 4.0)"
        )
    if version >= OTHER_STORE and any(not _has_new_store(path) for path in folder.glob("*-feature_flags")):
        raise NetspaceError(
            f"{folder}: RabbitMQ {shown} can't open what an older one has stored here; install the older one until the "
            "programs have read their mail, then move the folder away and apply again"
        )


def _has_new_store(features: Path) -> bool:
    """Return whether the store beside the file *features*, which the node's user owns, is one of 4.2 or newer."""
    try:
        with files.opened(features) as stream:
            return _NEW_STORE in stream.read(_FEATURES_BYTES)
    except OSError:
        return False
