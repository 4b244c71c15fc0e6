"""The current state of a host, computed from the record of its last result and the time.

The state is computed at each read, so hosts become stale even if the verifier has stopped. Pure: no file, no clock, no
signature. The caller has checked the verifier's signature of the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netspace.attestation.clocks import SKEW
from netspace.attestation.fleet.groups import Group
from netspace.attestation.fleet.result_fields import same_tpm

UNKNOWN, ENROLLED, TRUSTED, DEGRADED = "unknown", "enrolled", "trusted", "degraded"
STALE, FAILED, REVOKED = "stale", "failed", "revoked"


@dataclass(frozen=True)
class HostState:
    """A host's current state.

    :param record: the last result that this verifier made; None if this verifier made no result.
    """

    minion: str
    state: str
    reason: str
    remedy: str
    group: Group
    record: dict[str, Any] | None
    host: dict[str, Any] | None

    def shown(self, now: float) -> dict[str, Any]:
        """Return the state in the form that a runner returns."""
        record = self.record or {}
        counts = self.state in (TRUSTED, DEGRADED)
        return {
            "state": self.state,
            "level": f"L{record['level']}" if counts else "L0",
            "reason": self.reason,
            "code": record.get("code") if counts or self.state == FAILED else None,
            "remedy": self.remedy,
            "group": self.group.name,
            "minimum": f"L{self.group.minimum}",
            "last_level": f"L{record['level']}" if record else None,
            "policy_version": record.get("version"),
            "tee": (record.get("tee") or None) if counts else None,
            "evidence": record.get("issued"),
            "age": None if not record else int(now - record["issued"]),
            "deadline": None if not record else deadline(record, self.group),
            **({"ledger": _ledger(record["ledger"])} if counts and record.get("ledger") else {}),
        }


def _ledger(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields on a host's ledger of runs that a runner shows: lines, declaration, boot."""
    return {"lines": kept["count"], "declaration": kept["declared"], "boot": kept["boot"]}


def state(
    minion: str, record: Mapping[str, Any] | None, host: Mapping[str, Any] | None, group: Group, now: float
) -> tuple[str, str, str]:
    """Return a host's state, the reason, and the remedy.

    :param record: the last result.
    :param host: the registrar's record.
    """
    if host is not None and "revoked" in host:
        return (
            REVOKED,
            "its certificate was revoked",
            f"netspace_attestation.enroll {minion}, once the host is good again",
        )
    ours = record is not None and (
        record["kind"] == "software" if host is None else record["kind"] == "tpm" and same_tpm(record, host)
    )
    if record is None or not ours:
        if host is None:
            return (
                UNKNOWN,
                "the host is not enrolled, and was never attested",
                (f"netspace_attestation.enroll {minion}, then attest it; without a TPM, only attest it"),
            )
        return (
            ENROLLED,
            "the host is enrolled, and was not attested since then",
            f"netspace_attestation.attest {minion}",
        )
    if record["level"] == 0:
        return FAILED, record["reason"], record["remedy"]
    if record["issued"] > now + SKEW:
        return (
            STALE,
            "the last result is from the future; check the master's clock",
            (f"netspace_attestation.attest {minion}, once the clock is right"),
        )
    if now > deadline(record, group):
        late = int(now - deadline(record, group))
        return (
            STALE,
            f"the last result expired {late} s ago, and no new evidence came",
            f"netspace_attestation.attest {minion}",
        )
    name = TRUSTED if record["level"] >= group.minimum else DEGRADED
    return name, record["reason"], record["remedy"]


def deadline(record: Mapping[str, Any], group: Group) -> float:
    """Return the end of a result's validity: the signed deadline, or the group's present deadline if it is earlier."""
    return float(min(record["deadline"], record["issued"] + group.deadline))
