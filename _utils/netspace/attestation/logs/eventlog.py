"""The firmware's boot log: parsed strictly, and replayed to PCR values.

Parses the crypto-agile format (TCG PC Client Platform Firmware Profile 1.06, section 10) and the older SHA-1 format, as
in Linux's file ``binary_bios_measurements``. All integers are little-endian. Sizes and counts are bounded. A log alone
proves nothing: the TPM measured the log's events only if a replay of the log gives the quoted values. This module reads
no file.

An ACPI table (TPM2, CCEL) describes an area of memory that is larger than the log in it. :func:`unpadded` returns the
log of such an area; :func:`parse` accepts only logs without padding.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netspace.attestation.refusals import LogMalformed, LogMismatch

MAX_LOG = 1024 * 1024
MAX_EVENTS = 16384
PCRS = 24
NO_ACTION = 0x00000003
EFI_HCRTM = 0x80000010
# TPM_ALG_ID of the banks that can be replayed; SHA-1 for old logs only, never for trust.
BANKS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_SPEC_ID = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"
_FIRMWARE = "; some firmware never logs all that it measures there: then name PCR 0 in the policy's 'unchecked'"


class Event(NamedTuple):
    """One entry of a log. *digests* has a digest for each bank that can be replayed, by the bank's name."""

    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True)
class EventLog:
    """A complete log.

    :param banks: the banks for which every measured event has a digest.
    :param locality: the initial value of PCR 0: the locality of TPM2_Startup, or 4 after an H-CRTM.
    """

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    locality: int

    def replay(self, bank: str) -> dict[int, bytes]:
        """Return the value of each PCR that the log extends, in *bank*.

        :raises LogMismatch: when the log does not have this bank.
        """
        if bank not in self.banks:
            others = f", only {', '.join(self.banks)}" if self.banks else ""
            raise LogMismatch(f"the boot log has no {bank} digests{others}")
        digest_of = getattr(hashlib, bank)
        starts = self._start(0, bank), self._start(1, bank)
        values: dict[int, bytes] = {}
        extended = values.get
        for pcr, kind, digests, _ in self.events:
            if kind != NO_ACTION:
                values[pcr] = digest_of((extended(pcr) or starts[pcr > 0]) + digests[bank]).digest()
        return values

    def extended(self, pcr: int, bank: str, digests: Iterable[bytes]) -> bytes:
        """Return the value of *pcr* after *digests* have extended its initial value."""
        digest_of = getattr(hashlib, bank)
        value = self._start(pcr, bank)
        for digest in digests:
            value = digest_of(value + digest).digest()
        return value

    def _start(self, pcr: int, bank: str) -> bytes:
        """Return the initial value of *pcr*."""
        return (self.locality if pcr == 0 else 0).to_bytes(getattr(hashlib, bank)().digest_size, "big")

    def check(
        self, quoted: Mapping[int, bytes], bank: str = "sha256", replayed: Mapping[int, bytes] | None = None
    ) -> None:
        """Check that replaying the log gives the *quoted* values of all PCRs that the log extends.

        PCRs 0 to 7 without an event in the log must have their initial values.

        :param replayed: the replayed values, if they include other logs that continue this one; None: replay this log.
        :raises LogMismatch: when a value differs; the error names the first such PCR.
        """
        if replayed is None:
            replayed = self.replay(bank)
        for pcr in sorted(quoted.keys() & replayed.keys()):
            if replayed[pcr] != quoted[pcr]:
                raise LogMismatch(
                    f"the boot log leads to {replayed[pcr].hex()} in PCR {pcr}, the TPM has {quoted[pcr].hex()}"
                    f"{_FIRMWARE if pcr == 0 else ''}"
                )
        untouched = {bytes(len(value)) for value in quoted.values()}
        for pcr in sorted(quoted.keys() - replayed.keys()):
            if pcr < 8 and quoted[pcr] not in untouched:
                raise LogMismatch(f"the boot log has no event for PCR {pcr}, but the PCR was extended")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise LogMalformed(f"boot log: ends after {len(self.data)} bytes, within an event that ends at byte {end}")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def padding(self) -> bool:
        """Return whether padding begins at the current position.

        Padding has PCR and type both 0, or both with all bits set. No event has these values.

        :raises LogMalformed: when other bytes follow the padding.
        """
        fill = self.data[self.at : self.at + 1]
        head = self.data[self.at : self.at + 8]
        if fill not in (b"\0", b"\xff") or head.strip(fill):
            return False
        if self.data.count(fill, self.at) != self.left:
            raise LogMalformed(f"boot log: padding with {fill.hex()} begins at byte {self.at}, and other bytes follow")
        return True


def parse(raw: bytes, bank: str | None = None) -> EventLog:
    """Return a parsed boot log.

    :param bank: keep only the digests of this bank, which is faster; None: keep the digests of every bank that can be
        replayed.
    :raises LogMalformed: when *raw* is not a complete boot log.
    """
    return _parse(raw, padded=False, bank=bank)[0]


def unpadded(raw: bytes) -> bytes:
    """Return the log at the start of a log area, without the padding after it.

    The firmware fills the area with one value before it writes events (EDK2: 0xff; others: 0), so all bytes
    after the last event have that value (TCG ACPI Specification 1.3, LAML and LASA; Intel GHCI 1.5, CCEL).

    :raises LogMalformed: when there is no complete log, or when bytes other than padding follow the log.
    """
    return raw[: _parse(raw, padded=True)[1]]


def _parse(raw: bytes, *, padded: bool, bank: str | None = None) -> tuple[EventLog, int]:
    """Return the log, and the offset of its end."""
    if len(raw) > MAX_LOG:
        raise LogMalformed(f"boot log: {len(raw)} bytes; at most {MAX_LOG} are accepted")
    reader = _Reader(raw)
    if not reader.left or (padded and reader.padding()):
        raise LogMalformed("boot log: empty")
    first = _event_sha1(reader)
    crypto_agile = first.type == NO_ACTION and first.data.startswith(_SPEC_ID)
    sizes, usual = _header(first.data, bank) if crypto_agile else ({}, None)
    events, unusual = [first], [first]
    while True:
        if usual:
            usual.read(reader, events)
        if not reader.left or (padded and reader.padding()):
            break
        if len(events) == MAX_EVENTS:
            raise LogMalformed(f"boot log: more than {MAX_EVENTS} events")
        unusual.append(_event(reader, sizes) if sizes else _event_sha1(reader))
        events.append(unusual[-1])
    named = [BANKS[alg] for alg in sizes if alg in BANKS and bank in (None, BANKS[alg])] if sizes else ["sha1"]
    # An event of the usual layout has a digest for each of the log's banks.
    forms = [event.digests for event in unusual if event.type != NO_ACTION]
    banks = tuple(bank for bank in named if all(bank in form for form in forms))
    return EventLog(banks, tuple(events), _locality(events)), reader.at


@functools.lru_cache(maxsize=16)
def _header(data: bytes, bank: str | None) -> tuple[Mapping[int, int], _Layout]:
    """Return the sizes of digests by algorithm, and the layout of events, from a crypto-agile log's first event."""
    reader = _Reader(data)
    reader.take(len(_SPEC_ID) + 8)
    count = reader.number(4)
    if not 1 <= count <= 16:
        raise LogMalformed(f"boot log: {count} algorithms; expected 1 to 16")
    sizes: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = reader.number(2), reader.number(2)
        known = BANKS.get(algorithm)
        if algorithm in sizes or not 1 <= size <= 64 or (known and size != hashlib.new(known).digest_size):
            raise LogMalformed(
                f"boot log: algorithm {algorithm:04x} is listed twice, or with the wrong size of {size} bytes"
            )
        sizes[algorithm] = size
    reader.take(reader.number(1))
    if reader.left:
        raise LogMalformed(f"boot log: {reader.left} bytes too many in its first event")
    return sizes, _Layout(sizes, bank)


def _event_sha1(reader: _Reader) -> Event:
    """Return a TCG_PCClientPCREvent."""
    pcr, kind = reader.number(4), reader.number(4)
    digest = reader.take(20)
    return _checked(Event(pcr, kind, {"sha1": digest}, reader.take(reader.number(4))))


def _event(reader: _Reader, sizes: Mapping[int, int]) -> Event:
    """Return a TCG_PCR_EVENT2."""
    pcr, kind, count = reader.number(4), reader.number(4), reader.number(4)
    if count > len(sizes):
        raise LogMalformed(f"boot log: an event with {count} digests; the log has {len(sizes)} algorithms")
    digests: dict[str, bytes] = {}
    seen: set[int] = set()
    for _ in range(count):
        algorithm = reader.number(2)
        if algorithm not in sizes or algorithm in seen:
            raise LogMalformed(
                f"boot log: algorithm {algorithm:04x} of an event is not in the log's header, or occurs twice"
            )
        seen.add(algorithm)
        digest = reader.take(sizes[algorithm])
        if algorithm in BANKS:
            digests[BANKS[algorithm]] = digest
    return _checked(Event(pcr, kind, digests, reader.take(reader.number(4))))


class _Layout:
    """The layout of almost every event: a digest for each algorithm, in the header's order. Such events are read fast.

    :param bank: the only bank whose digests are kept; None: keep all banks.
    """

    def __init__(self, sizes: Mapping[int, int], bank: str | None) -> None:
        kept = {alg: BANKS[alg] for alg in sizes if alg in BANKS and bank in (None, BANKS[alg])}
        self._names = list(kept.values())
        digests = "".join(f"2x{size}{'s' if alg in kept else 'x'}" for alg, size in sizes.items())
        self._content = struct.Struct(f"<II4x{digests}I")
        # The fields that are the same in each such event: the number of digests, and each digest's algorithm.
        self._fixed = struct.Struct("<8xI" + "".join(f"H{size}x" for size in sizes.values()))
        self._expected = (len(sizes), *sizes)

    def read(self, reader: _Reader, events: list[Event]) -> None:
        """Move the next events from *reader* to *events*, up to the first event that does not have this layout.

        The caller handles the rest: an event of another form, padding, or an event whose size or PCR is out of bounds.
        """
        data, at, size, head, make = reader.data, reader.at, len(reader.data), self._content.size, tuple.__new__
        content, fixed, expected, names = (
            self._content.unpack_from,
            self._fixed.unpack_from,
            self._expected,
            self._names,
        )
        while at + head <= size and len(events) < MAX_EVENTS:
            pcr, kind, *values, length = content(data, at)
            start = at + head
            end = start + length
            if fixed(data, at) != expected or pcr >= PCRS or end > size or not (pcr or kind):
                break
            digests = dict(zip(names, values))  # noqa: B905 - as many, by the struct; this is a hot loop
            events.append(make(Event, (pcr, kind, digests, data[start:end])))
            at = end
        reader.at = at


def _checked(event: Event) -> Event:
    if event.type != NO_ACTION and event.pcr >= PCRS:
        raise LogMalformed(f"boot log: an event measures into PCR {event.pcr}; PCRs are 0 to {PCRS - 1}")
    return event


def _locality(events: list[Event]) -> int:
    """Return the locality of TPM2_Startup, which is PCR 0's initial value."""
    for event in events:
        if event.type == NO_ACTION and event.data.startswith(_LOCALITY):
            if len(event.data) != len(_LOCALITY) + 1 or event.data[-1] > 4:
                raise LogMalformed("boot log: not a valid startup locality")
            return event.data[-1]
        if event.type == EFI_HCRTM and event.pcr == 0:
            return 4
    return 0
