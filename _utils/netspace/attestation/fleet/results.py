"""Results of hosts, as the verifier keeps them: a signed record, the logs of the boot, and the announced state.

The *store* that keeps them need not be trusted: the verifier signs each record, and ignores records without its
signature. A log counts only if its digest is in a signed record. Nothing here judges evidence.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from netspace.attestation import ear
from netspace.attestation.ear import Signer
from netspace.attestation.evidence import Evidence
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.host_state import UNKNOWN, HostState
from netspace.attestation.refusals import Malformed, Refused
from netspace.attestation.registrar.host_record import key_of
from netspace.errors import NetspaceError

VERSION = 3
MAX_STATE = 256 * 1024


class LogLost(NetspaceError):
    """Error: the evidence names a boot log that the master no longer has."""


class Store(Protocol):
    """A store of records, which need not be trusted: results are signed, and signed results have the logs' digests."""

    def fetch(self, kind: str, key: str) -> dict[str, Any]:
        """Return the data under *kind* and *key*; empty if there is none."""

    def store(self, kind: str, key: str, data: dict[str, Any]) -> None:
        """Save *data* under *kind* and *key*."""


class Results:
    """The results in a *store*, signed by *signer*."""

    def __init__(self, store: Store, signer: Signer) -> None:
        self._store = store
        self._signer = signer

    def record(self, minion: str) -> dict[str, Any] | None:
        """Return the last result of *minion* that this verifier signed; None if there is none."""
        stored = self._store.fetch("state", key_of(minion))
        try:
            found = ear.opened(stored.get("jws") if stored else None, ear.STATE, [self._signer.jwk], MAX_STATE)
        except Refused:
            return None
        if found.get("v") != VERSION or found.get("minion") != minion:
            return None
        return found

    def save(self, record: dict[str, Any]) -> None:
        """Sign a record and save it."""
        self._store.store("state", key_of(record["minion"]), {"jws": self._signer.sign(ear.STATE, record)})

    def forget(self, minion: str) -> None:
        """Forget the last result of *minion*."""
        self._store.store("state", key_of(minion), {})

    def announced(self, standing: HostState) -> str | None:
        """Record a state as announced. Return the previously announced state; None if it is the same state."""
        key = key_of(standing.minion)
        before = str(self._store.fetch("told", key).get("state", UNKNOWN))
        if before == standing.state:
            return None
        self._store.store("told", key, {"state": standing.state, "minion": standing.minion})
        return before

    def keep_logs(
        self, asked: Asked, evidence: Evidence, before: Mapping[str, Any] | None
    ) -> tuple[str | None, str | None]:
        """Save the logs of the boot if they are new, and return their digests.

        All other evidence is saved in the record.

        :param asked: the challenge that the evidence answers.
        :param before: the host's last result; None: there is none.
        """
        logs = _logs(evidence)
        known = _digest(logs["log"]), _digest(logs["systemd"])
        # The log that the challenge named and the systemd log of the last record are saved already.
        if logs["log"] is not None and (asked.log, None if before is None else before["systemd"]) != known:
            coded = {name: None if one is None else base64.b64encode(one).decode() for name, one in logs.items()}
            self._store.store("log", key_of(asked.minion), coded)
        return known

    def keep_runs(self, minion: str, runs: Mapping[str, Any]) -> None:
        """Save a host's runs, as its judged ledger has them. The host's record has their digest."""
        if runs != self.runs(minion):
            self._store.store("runs", key_of(minion), {"runs": dict(runs)})

    def runs(self, minion: str) -> dict[str, Any]:
        """Return the saved runs of a host, which count only with the digest in its record."""
        found = self._store.fetch("runs", key_of(minion)).get("runs")
        return dict(found) if isinstance(found, dict) else {}

    def _log(self, minion: str, digest: str, name: str = "log") -> bytes | None:
        """Return the saved log of a host's boot; None if the saved log has another digest."""
        try:
            log = base64.b64decode(self._store.fetch("log", key_of(minion)).get(name, ""), validate=True)
        except (TypeError, ValueError):
            return None
        return log if _digest(log) == digest else None

    def with_log(self, asked: Asked, evidence: Evidence) -> Evidence:
        """Return the evidence; if it has only the digest of a boot log, add the log that the master keeps.

        :raises Malformed: when the challenge did not name this log.
        :raises LogLost: when the master no longer has the log.
        """
        if evidence.known_log is None:
            return evidence
        if evidence.known_log != asked.log:
            raise Malformed("evidence: bootlog is the digest of a log that the challenge did not name")
        log = self._log(asked.minion, asked.log)
        if log is None:
            raise LogLost(f"the boot log of {asked.minion} is not on the master any more; the log is asked for again")
        return dataclasses.replace(evidence, boot_log=log, known_log=None)

    def evidence(self, record: Mapping[str, Any]) -> tuple[Evidence | None, str]:
        """Return the evidence of a record (quoted PCRs, logs of the boot); or None, and why there is no evidence."""
        found: dict[str, bytes | None] = {}
        for name in ("log", "systemd"):
            digest = record[name]
            found[name] = None if digest is None else self._log(record["minion"], digest, name)
            if digest is not None and found[name] is None:
                return None, "the logs of its boot are not kept any more"
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in record["pcrs"].items()}
        return Evidence("tpm", b"", b"", b"", pcrs, found["log"], found["systemd"]), ""


def _logs(evidence: Evidence) -> dict[str, bytes | None]:
    """Return the logs of a boot.

    Without the firmware's log, systemd's log is left out, since it proves nothing alone.
    """
    return {
        "log": evidence.boot_log,
        "systemd": None if evidence.boot_log is None else evidence.systemd_log,
    }


def _digest(log: bytes | None) -> str | None:
    return None if log is None else hashlib.sha256(log).hexdigest()
