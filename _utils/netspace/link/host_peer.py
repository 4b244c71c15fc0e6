"""Resources of the host's own peer on the host: its folder, its user ids, and its connection to the broker.

The peer (``netspace.host.peer``) is a client of the broker like an environment's program. It reaches the broker through
a socket file in its folder, where the forwarder listens, so it needs no network. Root writes all other files of the
folder; the peer's group may read them.

The ids belong to no account. systemd's "Users, Groups, UIDs and GIDs" leaves 65536..524287 unused, and shadow's
subuid(5) begins at 100000.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from netspace.layout import Layout
from netspace.spec import peer
from netspace.spec.types import Link

SERVICE = "peer"
"""The name of the service."""
KEEPER_SERVICE = "keeper"
"""The name of the service that starts and ends children for the peer (``netspace.host.keeper``)."""
SOCKET = "broker.sock"
KEEPER = "keeper.sock"
"""The socket file in the folder by which the peer reaches the keeper of children."""
OWN = "own"
"""The folder in which the peer may write."""
_FIRST, _COUNT = 70000, 20000


def folder(layout: Layout) -> Path:
    """Return the peer's folder; it exists in memory only."""
    return layout.run / "peer"


def socket_path(layout: Layout) -> Path:
    return folder(layout) / SOCKET


def ids(layout: Layout) -> int:
    """Return the peer's user id and group id, which are the same number."""
    digest = hashlib.sha256(f"peer/{layout.instance}".encode()).digest()
    return _FIRST + int.from_bytes(digest[:4], "big") % _COUNT


def ensure(layout: Layout) -> None:
    """Make the folder, if it is missing.

    The folder isn't replaced as long as a link leads to the host, because it is the peer's working directory.
    """
    place = folder(layout)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chown(place, 0, ids(layout))
    place.chmod(0o750)
    own = place / OWN
    own.mkdir(exist_ok=True, mode=0o700)
    os.chown(own, ids(layout), ids(layout), follow_symlinks=False)
    own.chmod(0o700)


def frontend(layout: Layout) -> tuple[str, ...]:
    """Return the lines of the forwarder's frontend for the peer. Only the peer may connect to its socket file."""
    owner = ids(layout)
    return (
        "frontend host-peer",
        f"    bind unix@{socket_path(layout)} mode 600 uid {owner} gid {owner}",
        "    default_backend broker",
    )


def remove(layout: Layout) -> None:
    """Remove the folder with all its files, after the peer has ended."""
    import shutil  # the peer itself, which uses this module, needs none of it

    shutil.rmtree(folder(layout), ignore_errors=True)


def wanted(links: Collection[Link]) -> bool:
    """Return whether one of *links* leads to the host itself."""
    return any(peer.is_link(link) for link in links)
