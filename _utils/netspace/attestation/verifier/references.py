"""Strict parser of references: the values that an operator accepts for PCRs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from netspace.attestation.refusals import Malformed

References = Mapping[int, Collection[bytes]]


def parse(data: Any) -> References:
    """Parse references: ``{"sha256": {"<pcr>": ["<hex>", ...]}}``.

    :raises Malformed: when *data* has another form.
    """
    if not isinstance(data, Mapping) or set(data) != {"sha256"} or not isinstance(data["sha256"], Mapping):
        raise Malformed('references: expected {"sha256": {"<pcr>": ["<hex>", ...]}}')
    found: dict[int, frozenset[bytes]] = {}
    for pcr, values in data["sha256"].items():
        try:
            number = int(pcr) if str(pcr).isascii() else -1
            accepted = frozenset(bytes.fromhex(value) for value in values)
        except (TypeError, ValueError) as err:
            raise Malformed(f"references: PCR {pcr!r:.20}: {err}") from err
        if not 0 <= number <= 23 or any(len(value) != 32 for value in accepted):
            raise Malformed(f"references: PCR {pcr!r:.20}: a number in 0..23 with values of 32 bytes is expected")
        found[number] = accepted
    return found
