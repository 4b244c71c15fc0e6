"""Parser of PCR values in the forms that tpm2-tools write.

The forms are: the output of ``tpm2_quote -o`` (C structures, or concatenated digests with ``-F values``), the text of
``tpm2_pcrread``, and JSON ``{"sha256": {"0": "<hex>"}}``. Values prove something only if they match a quote's digest.
This module reads no file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from netspace.attestation.logs.eventlog import BANKS, PCRS
from netspace.attestation.refusals import Malformed

MAX_FILE = 64 * 1024
Values = dict[str, dict[int, bytes]]
_SIZES = {bank: hashlib.new(bank).digest_size for bank in BANKS.values()}


def parse(raw: bytes, selections: Sequence[tuple[str, Sequence[int]]]) -> Values:
    """Return the values by bank and PCR.

    :param selections: the quote's PCR selections; they give the order of concatenated digests.
    :raises Malformed: when *raw* has none of the known forms.
    """
    if len(raw) > MAX_FILE:
        raise Malformed(f"PCR values: {len(raw)} bytes; at most {MAX_FILE} are accepted")
    flat = [(bank, pcr, _SIZES[bank]) for bank, pcrs in selections for pcr in sorted(pcrs)]
    if flat and len(raw) == sum(size for _, _, size in flat):
        return _cut(raw, flat)
    if len(raw) >= 136 and (len(raw) - 136) % 532 == 0 and raw[:1] != b"{":
        return _serialized(raw)
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("PCR values: neither text nor one of the forms of tpm2_quote") from None
    return _json(text) if text.lstrip().startswith("{") else _pcrread(text)


def _cut(raw: bytes, flat: Sequence[tuple[str, int, int]]) -> Values:
    found: Values = {}
    at = 0
    for bank, pcr, size in flat:
        found.setdefault(bank, {})[pcr] = raw[at : at + size]
        at += size
    return found


def _serialized(raw: bytes) -> Values:
    """Parse C structures of a little-endian machine: TPML_PCR_SELECTION, a count, and this number of TPML_DIGEST."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(raw[at : at + size], "little")

    count, lists = number(0, 4), number(132, 4)
    if count > 16 or lists != (len(raw) - 136) // 532:
        raise Malformed("PCR values: counts out of bounds")
    flat: list[tuple[str, int, int]] = []
    for start in range(4, 4 + 8 * count, 8):
        bank, size = BANKS.get(number(start, 2)), raw[start + 2]
        if bank is None or size > 4:
            raise Malformed(f"PCR values: an unknown bank {number(start, 2):04x}")
        bits = number(start + 3, size)
        flat += [(bank, pcr, _SIZES[bank]) for pcr in range(PCRS) if bits >> pcr & 1]
    digests: list[bytes] = []
    for start in range(136, len(raw), 532):
        if number(start, 4) > 8:
            raise Malformed("PCR values: more than 8 digests in a list")
        for at in range(start + 4, start + 4 + 66 * number(start, 4), 66):
            digests.append(raw[at + 2 : at + 2 + min(number(at, 2), 64)])
    if [len(one) for one in digests] != [size for _, _, size in flat]:
        raise Malformed("PCR values: some selected PCRs lack a digest")
    found: Values = {}
    for (bank, pcr, _), digest in zip(flat, digests, strict=True):
        if found.setdefault(bank, {}).setdefault(pcr, digest) != digest:
            raise Malformed(f"PCR values: two values of PCR {pcr}")
    return found


def _json(text: str) -> Values:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise Malformed(f"PCR values: {err}") from err
    if isinstance(data, Mapping) and isinstance(data.get("banks"), Mapping):
        data = data["banks"]  # the output of the runner's replay
    found: Values = {}
    for bank, values in data.items():
        if not isinstance(values, Mapping):
            raise Malformed(f"PCR values: {bank[:20]}: not a mapping")
        for pcr, value in values.items():
            _add(found, bank, pcr, value)
    return found


def _pcrread(text: str) -> Values:
    found: Values = {}
    bank = ""
    for line in text.splitlines():
        if head := re.fullmatch(r" *(sha\d{1,4}) *:", line, re.ASCII):
            bank = head[1]
        elif entry := re.fullmatch(r" *(\d{1,2}) *: *0x([0-9A-Fa-f]{1,128})", line, re.ASCII):
            _add(found, bank, entry[1], entry[2])
        elif line.strip():
            raise Malformed(f"PCR values: {line[:60]!r} is not a line of tpm2_pcrread")
    return found


def _add(found: Values, bank: str, pcr: Any, value: Any) -> None:
    try:
        number, digest = int(pcr), bytes.fromhex(value)
    except (TypeError, ValueError) as err:
        raise Malformed(f"PCR values: {bank[:20]}:{pcr!r:.20}: {err}") from err
    if len(digest) != _SIZES.get(bank) or not 0 <= number < PCRS or number in found.get(bank, ()):
        raise Malformed(f"PCR values: {bank[:20]}:{number}: an unknown bank or PCR, a wrong size, or given twice")
    found.setdefault(bank, {})[number] = digest
