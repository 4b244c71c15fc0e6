"""A short run of the fuzzer; ``python tests/support/attestation/attestation_fuzz.py`` is the long run."""

from __future__ import annotations

import random

from support.attestation import attestation_fuzz


def test_mutated_inputs_are_read_or_refused() -> None:
    found = attestation_fuzz.run(3000, random.SystemRandom().randrange(2**32))
    assert all(tally.refused for tally in found.values())


def test_the_loop_tells_what_it_found(monkeypatch) -> None:
    def broken(raw: bytes) -> None:
        raise KeyError("x")

    monkeypatch.setattr(attestation_fuzz, "targets", lambda: {"broken": (broken, [b"abc"])})
    try:
        attestation_fuzz.run(1, 0)
    except AssertionError as err:
        assert "KeyError" in str(err)
    else:
        raise AssertionError("it must tell")
