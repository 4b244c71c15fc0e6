"""Digest of a host's declaration in its ledger of runs."""

from __future__ import annotations

import msgspec
from support import checkout

from netspace.host import declaration_file, ledger
from netspace.spec.types import Appraised, Declaration


def test_digest_is_of_all_that_is_declared() -> None:
    whole = declaration_file.read(str(checkout.ROOT / "pillar.example"))
    again = declaration_file.read(str(checkout.ROOT / "pillar.example"))
    assert ledger.digest(whole) == ledger.digest(again) != ledger.digest(Declaration())
    name, spec = next(iter(whole.environments.items()))
    other = msgspec.structs.replace(
        whole, environments={**whole.environments, name: msgspec.structs.replace(spec, init=not spec.init)}
    )
    assert ledger.digest(other) != ledger.digest(whole)


def test_levels_of_other_hosts_are_left_out_of_the_digest() -> None:
    whole = Declaration()
    filled = msgspec.structs.replace(whole.attestation, appraised={"h2": Appraised("L3", 1.0)})
    assert ledger.digest(msgspec.structs.replace(whole, attestation=filled)) == ledger.digest(whole)
