"""Verification of a host's ledger of runs. Pure: no file, no TPM, no clock.

The checks, in the only allowed order:

1. The TPM's certificate is genuine as a quote is: type, signature by the attestation key, qualifying data, hierarchy.
2. It is of the ledger's NV index (its name covers number, type and attributes), and of the same boot as the quote.
3. The first line sent is the ledger's first line, or the one after the last line that was judged in the same boot.
4. Each line is well-formed, and the lines contain all that the verifier has judged before in the same boot.
5. Some prefix of the lines leads to the certified value. Later lines are left for the next appraisal.
6. The first line names the boot of the evidence.

For a software key there is no certificate: the key has signed the lines, so all of them count.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from netspace.attestation.evidence import Context
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.refusals import (
    LedgerBoot,
    LedgerIndex,
    LedgerMalformed,
    LedgerMismatch,
    LedgerRolledBack,
    WrongHierarchy,
    WrongQualifyingData,
)
from netspace.attestation.tpm import structures
from netspace.attestation.tpm.structures import Clock, Public
from netspace.attestation.verifier import quote_checks
from netspace.ledger import entries, nv_public
from netspace.ledger.entries import State


@dataclass(frozen=True)
class Judged:
    """The judged part of a host's ledger. The caller keeps it for the next appraisal.

    :param epoch: name of the period in which the ledger can only grow: the time between two resets of the TPM; without
        a TPM, a boot.
    :param whole: whether *state* has the runs that have not ended; if not, the host must send all lines again.
    """

    epoch: str
    state: State
    whole: bool = True


def judged(proof: LedgerProof, signer: tuple[Public, Clock] | None, context: Context, before: Judged | None) -> Judged:
    """Judge the lines of a ledger.

    :param signer: the attestation key, and the clock of its quote; None: a software key, whose signature over the lines
        was verified.
    :param before: the part of this host's ledger that was judged before; None: nothing was judged.
    :raises Refused: for the first check that fails.
    """
    boot = context.binding.decode(errors="replace")
    epoch, value = f"boot {boot}", None
    if signer is not None:
        epoch, value = f"reset {signer[1].reset_count}", certified(proof, *signer, context)
    elif proof.attest or proof.signature:
        raise LedgerMalformed("a software key's ledger must have no certificate")
    known = before if before is not None and before.epoch == epoch else None
    same = None if known is None else known.state
    start = State()
    if proof.first:
        if known is None or same is None or not known.whole or proof.first != same.count:
            raise LedgerMalformed(f"the ledger's lines begin at line {proof.first}, which isn't the next line to judge")
        start = same
    try:
        state = _replayed(proof.lines, start, value, same)
    except entries.Unreadable as err:
        raise LedgerMalformed(f"the ledger of runs: {err}") from err
    if same is not None and state.count < same.count:
        raise LedgerRolledBack("the ledger is shorter than the one that was judged before in this boot")
    if state.boot != boot:
        raise LedgerBoot("the ledger is of another boot than the evidence")
    return Judged(epoch, state)


def _replayed(lines: bytes, start: State, value: bytes | None, known: State | None) -> State:
    """Return the state after the lines that lead to *value*; if *value* is None, after all lines.

    :param known: the state that was judged before in this boot.
    """
    if start.head == value:
        return start
    state = start
    for state in entries.replay(entries.split(lines), start):
        if known is not None and state.count == known.count and not hmac.compare_digest(state.head, known.head):
            raise LedgerRolledBack("the ledger has other lines than the one that was judged before in this boot")
        if state.head == value:
            return state
    if value is not None:
        raise LedgerMismatch("the lines of the ledger don't lead to the value of the TPM's NV index")
    return state


def certified(proof: LedgerProof, key: Public, clock: Clock, context: Context) -> bytes:
    """Check the TPM's certificate of the NV index, and return the index's value.

    :param clock: the clock of the quote that came with the certificate.
    """
    found = structures.certified_index(proof.attest)
    quote_checks.check_signature(proof.signature, proof.attest, key.key(), key.scheme)
    if not hmac.compare_digest(found.extra, context.qualifying()):
        raise WrongQualifyingData("ledger: signed for another nonce, session, host or verifier")
    if not hmac.compare_digest(found.signer, key.qualified_name):
        raise WrongHierarchy("ledger: the attestation key is not a primary key of the TPM's endorsement hierarchy")
    if not hmac.compare_digest(found.name, nv_public.name()):
        raise LedgerIndex("the TPM's certificate is of another NV index, or of one with other attributes")
    if found.offset or len(found.content) != nv_public.SIZE:
        raise LedgerIndex("the TPM's certificate covers only a part of the NV index")
    if (found.clock.reset_count, found.clock.restart_count) != (clock.reset_count, clock.restart_count):
        raise LedgerBoot("the TPM's certificate of the NV index is from another boot than the quote")
    return found.content
