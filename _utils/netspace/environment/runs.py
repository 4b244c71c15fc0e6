"""Starts and ends of environments in the host's ledger of runs, on hosts that keep one.

A start is recorded before the supervisor is asked for it, an end once the supervisor has stopped the program. Restarts
by the supervisor in between are not recorded, because image and configuration stay the same.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from netspace import files
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.environment.record import Record
    from netspace.ledger.entries import Run

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def kept(layout: Layout) -> bool:
    """Return whether this host keeps a ledger. Imports nothing, since most hosts keep none."""
    return os.path.exists(layout.records("attestation") / "ledger.json")


def starting(layout: Layout, known: Mapping[str, Record]) -> None:
    """Record that environments are about to be started.

    :param known: the records with which they are started.
    :raises NetspaceError: when the ledger can't be written; none of the environments may be started then.
    """
    if known and kept(layout):
        from netspace.ledger import journal

        journal.note_starts(layout, {name: described(layout, name, record) for name, record in known.items()})


def ended(layout: Layout, names: Collection[str]) -> None:
    """Record that environments have ended. Names of environments that did not run are skipped."""
    if names and kept(layout):
        from netspace.ledger import journal

        journal.note_ends(layout, names)


def filled(layout: Layout, names: Collection[str]) -> tuple[float, float]:
    """Return two shares of the ledger's space, from 0 to 1: of all lines, and of the lines about these environments."""
    if not kept(layout):
        return 0.0, 0.0
    from netspace.ledger import journal

    return journal.filled(layout, names)


def described(layout: Layout, name: str, record: Record) -> Run:
    """Return the facts about a run that the ledger records: image, configuration and certificate."""
    from netspace.ledger.entries import Run

    return Run(record.image.digest, record.config, _certificate(layout, name))


def _certificate(layout: Layout, name: str) -> str:
    """Return the SHA-256 of the certificate (DER) by which an environment logs in; empty if it has none."""
    try:
        raw = files.read(layout.identity(layout.whose(name)) / "identity.pem")
        return hashlib.sha256(base64.b64decode(raw.split(_BEGIN, 1)[1].split(_END, 1)[0])).hexdigest()
    except (OSError, ValueError, IndexError):
        return ""
