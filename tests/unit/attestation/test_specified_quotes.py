"""SPECIFICATION.md: the number of library calls to verify a quote, and the size of a quote in bytes."""

from __future__ import annotations

from support.specification import calls, hold

from netspace.attestation.evidence import Context
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.attestation.verifier.verifier import Expected

PCRS = tuple(range(8))


def test_calls_to_verify_a_quote(fake_tpm, context: Context) -> None:
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=1e9)
    answer = context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name)
    bound, evidence, expected = made.redeem(answer, 1e9), fake_tpm.evidence(context), Expected(context, PCRS)
    verifier.verify_quote(evidence, bound, expected)  # what is kept for the next one is kept now
    verified = []
    number = calls(lambda: verified.append(verifier.verify_quote(evidence, bound, expected)))
    assert verified[0].level == 2
    hold("quote.calls", number)
