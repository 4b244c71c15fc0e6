"""Table of one host's trusted computing base below its kernel, from the records of the fleet's verifier."""

from __future__ import annotations

from typing import Any

from netspace.attestation.evidence import Evidence
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.refusals import Refused
from netspace.attestation.tcb import report


def of_host(fleet: Fleet, minion: str, told: object) -> dict[str, Any]:
    """Return the rows of one host: ``{rows, measured, note}``.

    :param told: the host's grain ``netspace_tcb``, untrusted; None if there is none.
    """
    record = fleet.results.record(minion)
    evidence: Evidence | None = None
    note = ""
    if record is None or not record["level"] or record["kind"] != "tpm":
        note = "nothing is measured: this host has sent no genuine quote"
    elif record["base"] < 3:
        note = "nothing is measured: the host's TPM does not chain to a trusted maker"
    else:
        evidence, note = fleet.results.evidence(record)
    try:
        policy = fleet.policies.get(fleet.group(minion).name)
    except Refused as err:
        policy, note = None, str(err)
    terms = None if policy is None or policy.boot is None else policy.boot.tcb
    rows = report.shown(report.rows(told, evidence, terms))
    measured = record["issued"] if evidence is not None and record is not None else None
    return {"rows": rows, "measured": measured, "note": note}
