"""Inventory of TPMs: the operator's list of the endorsement keys that each minion may have.

At enrolment, an attacker with root can present the genuine TPM of another machine and relay its answers. No TPM
protocol detects this relay. To prevent it, the operator records in this file which TPM is in which machine::

    # minion   SHA-256 of its endorsement keys (SubjectPublicKeyInfo), one or more
    web1       5f0c...e1  9a77...03

If there is an inventory, only minions in it are enrolled.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from netspace import files
from netspace.attestation.refusals import UnlistedEndorsementKey
from netspace.errors import NetspaceError

MAX_FILE = 64 * 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Inventory:
    """Content of the inventory.

    :param owners: the minion of each endorsement key, by the key's fingerprint.
    :param minions: all listed minions.
    """

    owners: dict[str, str]
    minions: frozenset[str]

    def check(self, minion: str, endorsement: str, others: list[str]) -> None:
        """Check that the inventory assigns the TPM with these endorsement keys to *minion*.

        :param endorsement: fingerprint of the minion's endorsement key.
        :param others: fingerprints of the TPM's other endorsement keys.
        :raises UnlistedEndorsementKey: when the inventory assigns the TPM to another minion, or to no minion.
        """
        if minion not in self.minions:
            raise UnlistedEndorsementKey(f"the inventory does not name {minion}")
        if self.owners.get(endorsement) != minion:
            whose = self.owners.get(endorsement, "nobody's")
            raise UnlistedEndorsementKey(f"by the inventory, the TPM {endorsement[:16]}... is {whose}, not {minion}'s")
        for one in others:
            if self.owners.get(one, minion) != minion:
                raise UnlistedEndorsementKey(f"by the inventory, the key {one[:16]}... is {self.owners[one]}'s")


def read(path: Path) -> Inventory:
    """Read the inventory. The file is read again only if its size or time changed.

    :raises NetspaceError: when a line is invalid; the message names the line.
    """
    try:
        return _read(path, files.stamp(path))
    except OSError as err:
        raise NetspaceError(f"netspace.attestation:inventory: {path}: {err.strerror}") from err


@functools.lru_cache(maxsize=4)
def _read(path: Path, stamp: tuple[int, int, int]) -> Inventory:
    """Read the file. *stamp* is part of the cache key, so a changed file is read again."""
    raw = files.read(path, MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise NetspaceError(f"{path}: more than {MAX_FILE} bytes")
    owners: dict[str, str] = {}
    minions: set[str] = set()
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        minion, *keys = words
        keys = [one.lower() for one in keys]
        if not keys or any(not _DIGEST.fullmatch(one) for one in keys):
            raise NetspaceError(f"{path}: line {number}: expected a minion's id and SHA-256 digests of 64 hex digits")
        if minion in minions:
            raise NetspaceError(
                f"{path}: line {number}: {minion:.80} is listed a second time; write its keys in one line"
            )
        minions.add(minion)
        for one in keys:
            if owners.setdefault(one, minion) != minion:
                raise NetspaceError(
                    f"{path}: line {number}: {one} is {owners[one]:.80}'s already; list a TPM for one minion only"
                )
    return Inventory(owners, frozenset(minions))
