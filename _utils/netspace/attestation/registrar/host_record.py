"""The registrar's record of a minion: its keys, and the name of its file.

Pure: nothing here reads or writes a file, or checks a certificate.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from netspace.attestation.refusals import Malformed
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError


def bound_key(record: Mapping[str, Any]) -> structures.Public:
    """Return the attestation key of a minion's record, even if its certificate is not valid.

    :raises NetspaceError: when the record is malformed.
    """
    try:
        return structures.public(base64.b64decode(record["ak"], validate=True))
    except (KeyError, TypeError, ValueError, Malformed) as err:
        raise NetspaceError(f"{record.get('minion')}: its record is not that of an enrolled host") from err


def keys_of(record: Mapping[str, Any]) -> list[str]:
    """Return the fingerprints of all keys in a minion's record."""
    return [record["ek"], *record.get("others", ()), bound_key(record).fingerprint]


def key_of(minion: str) -> str:
    """Return the file name for a minion's record: a hash of the minion's id.

    The id itself can't be the name, because it may have characters that a file name can't have.
    """
    return hashlib.sha256(minion.encode()).hexdigest()[:32]
