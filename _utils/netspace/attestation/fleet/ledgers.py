"""Judgement of hosts' ledgers of runs by the fleet's verifier, and the state kept for the next judgement. Pure.

A result's signed record has the number of judged lines. The runs that had not ended by then are stored apart from the
record (``Results.keep_runs``), and count only if their digest is the one in the record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation import ear
from netspace.attestation.evidence import Context, Evidence
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.policy.environments import Environments
from netspace.attestation.refusals import Limited, NoLedger
from netspace.attestation.tee.appraisal import LEVEL_KEY, LEVEL_TPM, Worth
from netspace.attestation.tpm.structures import Clock, Public
from netspace.attestation.verifier import ledger_rules
from netspace.attestation.verifier.ledger_rules import Judged
from netspace.ledger.entries import Run, State

# The most environments that a result lists; those that the policy refuses come first.
MOST_LISTED = 128


@dataclass(frozen=True)
class Told:
    """The fields that a ledger adds to a host's result.

    :param record: fields of the result's record, for the next judgement; None: keep the fields of the last record.
    :param runs: the runs that have not ended, for the store.
    :param ledger: fields on the ledger, for the signed result.
    :param environments: fields on each running environment, by name, for the signed result.
    """

    record: Mapping[str, Any] | None = None
    runs: Mapping[str, list[Any]] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def weighed(
    evidence: Evidence,
    context: Context,
    signer: tuple[Public, Clock] | None,
    asked: Asked,
    before: Judged | None,
    base: Worth,
) -> tuple[Worth, Told]:
    """Judge the ledger in verified *evidence*; return the level, and the ledger's part of the result.

    :param signer: the attestation key, and the clock of its quote; None: a software key.
    :param asked: the challenge. Without a section ``environments`` in its policy, ledgers are ignored.
    :param before: what was judged of this host before.
    :param base: level of the evidence without a ledger.
    :raises Refused: when the ledger is forged.
    """
    section = None if asked.policy is None else asked.policy.environments
    if section is None:
        return base, Told()
    try:
        if evidence.ledger is None:
            raise NoLedger("the host sent no ledger of runs")
        found = ledger_rules.judged(evidence.ledger, signer, context, before)
    except Limited as err:
        return _limited(base, err, signer is not None), Told()
    worth = base
    try:
        section.check(found.state)
    except Limited as err:
        worth = _limited(base, err, signer is not None)
    runs = {name: list(run) for name, run in sorted(found.state.running.items())}
    return worth, Told(
        _record(found, runs),
        runs,
        _ledger(found.state),
        _listed(found.state, section, worth.level >= max(asked.group.minimum, LEVEL_TPM)),
    )


def _limited(base: Worth, why: Limited, by_tpm: bool) -> Worth:
    return Worth(min(base.level, LEVEL_TPM if by_tpm else LEVEL_KEY), why.code, str(why), why.remedy)


def _ledger(state: State) -> dict[str, Any]:
    told = {"netspace_declaration": f"sha256:{state.declared}"} if state.declared else {}
    return {"lines": state.count, "head": state.head.hex(), "running": len(state.running), **told}


def _listed(state: State, section: Environments, affirmed: bool) -> dict[str, dict[str, Any]]:
    """Return the fields on each running environment. No environment has a better status than its host.

    :param affirmed: whether the host's status is affirming.
    """
    refused = {name: why for name, run in state.running.items() if (why := section.refusal(name, run)) is not None}
    first = sorted(state.running, key=lambda name: (name not in refused, name))[:MOST_LISTED]
    good = ear.AFFIRMING if affirmed else ear.WARNING
    return {
        name: {
            "ear_status": ear.CONTRAINDICATED if name in refused else good,
            "netspace_code": refused[name].code if name in refused else "ok",
            "netspace_image": f"sha256:{run.image}",
            "netspace_configuration": f"sha256:{run.configuration}",
            **({"netspace_certificate": f"sha256:{run.certificate}"} if run.certificate else {}),
            "netspace_started": run.at,
            "netspace_line": run.number,
        }
        for name, run in ((name, state.running[name]) for name in first)
    }


def _record(found: Judged, runs: Mapping[str, list[Any]]) -> dict[str, Any]:
    state = dataclasses.asdict(dataclasses.replace(found.state, running={}))
    return {**state, "epoch": found.epoch, "head": found.state.head.hex(), "running": digest(runs)}


def digest(runs: Mapping[str, Any]) -> str:
    """Return the digest of stored runs."""
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()


def before(record: Mapping[str, Any] | None, runs: Callable[[], Mapping[str, Any]]) -> Judged | None:
    """Return the judged part of a host's ledger; None if nothing was judged.

    If the stored runs are missing or damaged, the host must send its ledger from the first line. The ledger must still
    contain all lines that were judged before.

    :param record: the last result.
    :param runs: returns the stored runs.
    """
    kept = None if record is None else record.get("ledger")
    if not kept:
        return None
    stored = runs()
    whole = digest(stored) == kept["running"]
    running = {name: Run(*fields) for name, fields in stored.items()} if whole else {}
    state = State(kept["count"], bytes.fromhex(kept["head"]), kept["boot"], kept["declared"], running, kept["full"])
    return Judged(kept["epoch"], state, whole)


def position(found: Judged | None) -> tuple[str, int]:
    """Return the boot of the judged ledger and the number of its lines, for a challenge."""
    return (found.state.boot, found.state.count) if found is not None and found.whole else ("", 0)
