"""Parser of systemd's measurement log (``tpm2-measure.log``), which is replayed after the boot log.

systemd logs its own measurements, which follow those of the firmware: boot phases in PCR 11, machine id and volumes in
PCR 15. The log is a JSON text sequence (RFC 7464) in the form of TCG's Canonical Event Log. This module reads no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace import strict_json
from netspace.attestation.logs.eventlog import BANKS, PCRS
from netspace.attestation.refusals import LogMalformed

MAX_LOG = 1024 * 1024
MAX_RECORDS = 4096
MAX_TEXT = 4096
_NAMES = frozenset(BANKS.values())


@dataclass(frozen=True)
class Record:
    """One measurement.

    :param digests: by the bank's name.
    :param kind: systemd's name for the type of event, e.g. ``phase``.
    :param text: the text that systemd measured, by its own claim; see :meth:`proved`.
    """

    pcr: int
    digests: Mapping[str, bytes]
    kind: str
    text: str

    def proved(self, bank: str) -> bool:
        """Return whether the digest in *bank* matches the text. Without a match, the text was not measured."""
        return self.digests.get(bank) == hashlib.new(bank, self.text.encode()).digest()

    def describe(self) -> dict[str, Any]:
        """Return the record in readable form, as ``events.describe`` returns events."""
        return {
            "pcr": self.pcr,
            "type": f"systemd:{self.kind}",
            "digests": {bank: digest.hex() for bank, digest in self.digests.items()},
            "matches": all(self.proved(bank) for bank in self.digests),
            "text": self.text[:1024],
        }


def parse(raw: bytes) -> tuple[Record, ...]:
    """Parse a log. Records of extended NV indices are skipped.

    :raises LogMalformed: when *raw* is not a log, or is cut off.
    """
    if len(raw) > MAX_LOG:
        raise LogMalformed(f"systemd's log: {len(raw)} bytes; at most {MAX_LOG} are accepted")
    parts = raw.split(b"\x1e")
    if parts[0].strip():
        raise LogMalformed("systemd's log: does not begin with a record")
    if len(parts) > MAX_RECORDS + 1:
        raise LogMalformed(f"systemd's log: more than {MAX_RECORDS} records")
    found: list[Record] = []
    for part in parts[1:]:
        if not part.endswith(b"\n"):  # RFC 7464, 2.4: a record may be cut off
            raise LogMalformed(f"systemd's log: record {len(found)} is cut off")
        record = _record(part, len(found))
        if record is not None:
            found.append(record)
    return tuple(found)


def _record(part: bytes, number: int) -> Record | None:
    def refuse(problem: object) -> LogMalformed:
        return LogMalformed(f"systemd's log: record {number}: {problem}")

    try:
        data = strict_json.loads(part)
    except ValueError as err:
        raise refuse(err) from err
    if not isinstance(data, dict):
        raise refuse("not an object")
    if "pcr" not in data and ("nv_index" in data or "nvIndex" in data):
        return None
    pcr, digests, content = data.get("pcr"), data.get("digests"), data.get("content")
    if type(pcr) is not int or not 0 <= pcr < PCRS:
        raise refuse("no PCR")
    if not isinstance(digests, list) or not 1 <= len(digests) <= 16:
        raise refuse("no list of 1 to 16 digests")
    if data.get("content_type") != "systemd" or not isinstance(content, dict):
        raise refuse("its content is not of systemd's type")
    values: dict[str, bytes] = {}
    for one in digests:
        name, digest = (one.get("hashAlg"), one.get("digest")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(digest, str) or name in values or len(digest) > 128:
            raise refuse("a malformed digest, or a bank given twice")
        if name not in _NAMES:
            continue
        try:
            values[name] = bytes.fromhex(digest)
        except ValueError as err:
            raise refuse(err) from err
        if len(values[name]) != hashlib.new(name).digest_size:
            raise refuse(f"a digest of {len(values[name])} bytes")
    said, kind = content.get("string", ""), content.get("eventType", "")
    if not isinstance(said, str) or not isinstance(kind, str) or len(said) > MAX_TEXT or len(kind) > 64:
        raise refuse("not a text, or too long a text")
    try:
        said.encode(), kind.encode()
    except UnicodeEncodeError as err:
        raise refuse(err) from err
    return Record(pcr, values, kind, said)


def extend(values: Mapping[int, bytes], records: Sequence[Record], bank: str) -> dict[int, bytes]:
    """Return the PCR values that result when *records* extend *values*.

    :raises LogMalformed: when a record has no digest for *bank*.
    """
    found = dict(values)
    start = bytes(hashlib.new(bank).digest_size)
    for number, record in enumerate(records):
        digest = record.digests.get(bank)
        if digest is None:
            raise LogMalformed(f"systemd's log: record {number} has no {bank} digest")
        found[record.pcr] = hashlib.new(bank, found.get(record.pcr, start) + digest).digest()
    return found
