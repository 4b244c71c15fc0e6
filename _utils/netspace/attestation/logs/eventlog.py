"""The firmware's boot log: parsed strictly, and replayed to PCR values.

Reads the crypto-agile format (TCG PC Client Platform Firmware Profile 1.06, section
10) and the older SHA-1 one, as Linux offers them in ``binary_bios_measurements``.
All integers are little-endian. Sizes and counts are bounded. A log proves nothing by
itself: it is what the TPM measured only if it replays to quoted values. No file is read here.

An ACPI table (TPM2, CCEL) describes an area of memory that is larger than the log in it. :func:`unpadded` returns
the log of such an area; :func:`parse` accepts only logs without padding.
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
    """One entry of a log. *digests* are by the bank's name, without banks that can't be replayed."""

    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True)
class EventLog:
    """A complete log.

    :param banks: the banks for which every measured event has a digest.
    :param locality: the initial value of PCR 0 (3 or 4 after an H-CRTM).
    """

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    locality: int

    def replay(self, bank: str) -> dict[int, bytes]:
        """Return the value of each PCR that the log extends, in *bank*.

        :raises LogMismatch: when the log does not have this bank.
        """
        if bank not in self.banks:
            raise LogMismatch(f"the boot log has no {bank} digests, only {', '.join(self.banks) or 'none'}")
        digest_of = getattr(hashlib, bank)
        size = digest_of().digest_size
        values: dict[int, bytes] = {}
        for pcr, kind, digests, _ in self.events:
            if kind == NO_ACTION:
                continue
            before = values.get(pcr)
            if before is None:
                before = bytes((*bytes(size - 1), self.locality if pcr == 0 else 0))
            values[pcr] = digest_of(before + digests[bank]).digest()
        return values

    def extended(self, pcr: int, bank: str, digests: Iterable[bytes]) -> bytes:
        """Return the value of *pcr* after *digests* have extended its initial value."""
        digest_of = getattr(hashlib, bank)
        value = bytes((*bytes(digest_of().digest_size - 1), self.locality if pcr == 0 else 0))
        for digest in digests:
            value = digest_of(value + digest).digest()
        return value

    def check(
        self, quoted: Mapping[int, bytes], bank: str = "sha256", replayed: Mapping[int, bytes] | None = None
    ) -> None:
        """Check that the log leads to the *quoted* values of all PCRs that it extends.

        PCRs 0 to 7 without an event in the log must be untouched.

        :param replayed: the replayed values, if other logs continue this one.
        :raises LogMismatch: naming the first PCR that differs.
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
                raise LogMismatch(f"the boot log has no event for PCR {pcr}, but something was measured into it")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise LogMalformed(f"boot log: ends after {len(self.data)} bytes within an event; {end} are announced")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def padding(self) -> bool:
        """Return whether padding begins here. Its PCR and type are both 0, or both all ones: no event has these values.

        :raises LogMalformed: when other bytes follow the padding.
        """
        fill = self.data[self.at : self.at + 1]
        head = self.data[self.at : self.at + 8]
        if fill not in (b"\0", b"\xff") or head.strip(fill):
            return False
        if self.data.count(fill, self.at) != self.left:
            raise LogMalformed(f"boot log: padding with {fill.hex()} begins at byte {self.at}, and others follow")
        return True


def parse(raw: bytes) -> EventLog:
    """Return a parsed boot log.

    :raises LogMalformed: when *raw* is not a complete boot log.
    """
    return _parse(raw, padded=False)[0]


def unpadded(raw: bytes) -> bytes:
    """Return the log at the start of a log area, without the padding after it.

    The firmware fills the area with one value before it writes events (EDK2: 0xff; others: 0), so all bytes
    after the last event have that value (TCG ACPI Specification 1.3, LAML and LASA; Intel GHCI 1.5, CCEL).

    :raises LogMalformed: when there is no complete log, or when other bytes than padding follow it.
    """
    return raw[: _parse(raw, padded=True)[1]]


def _parse(raw: bytes, *, padded: bool) -> tuple[EventLog, int]:
    """Return the log, and the offset of its end."""
    if len(raw) > MAX_LOG:
        raise LogMalformed(f"boot log: {len(raw)} bytes, at most {MAX_LOG} are possible")
    reader = _Reader(raw)
    if not reader.left or (padded and reader.padding()):
        raise LogMalformed("boot log: empty")
    first = _event_sha1(reader)
    crypto_agile = first.type == NO_ACTION and first.data.startswith(_SPEC_ID)
    sizes, usual = _header(first.data) if crypto_agile else ({}, None)
    events = [first]
    while True:
        if usual:
            usual.read(reader, events)
        if not reader.left or (padded and reader.padding()):
            break
        if len(events) == MAX_EVENTS:
            raise LogMalformed(f"boot log: more than {MAX_EVENTS} events")
        events.append(_event(reader, sizes) if sizes else _event_sha1(reader))
    forms = {tuple(digests) for _, kind, digests, _ in events if kind != NO_ACTION}
    named = [BANKS[alg] for alg in sizes if alg in BANKS] if sizes else ["sha1"]
    banks = tuple(bank for bank in named if all(bank in form for form in forms))
    return EventLog(banks, tuple(events), _locality(events)), reader.at


@functools.lru_cache(maxsize=16)
def _header(data: bytes) -> tuple[Mapping[int, int], _Layout]:
    """Return the sizes of digests by algorithm, and the layout of events, from a crypto-agile log's first event."""
    reader = _Reader(data)
    reader.take(len(_SPEC_ID) + 8)
    count = reader.number(4)
    if not 1 <= count <= 16:
        raise LogMalformed(f"boot log: {count} algorithms; 1 to 16 are possible")
    sizes: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = reader.number(2), reader.number(2)
        known = BANKS.get(algorithm)
        if algorithm in sizes or not 1 <= size <= 64 or (known and size != hashlib.new(known).digest_size):
            raise LogMalformed(f"boot log: algorithm {algorithm:04x} twice, or with a digest of {size} bytes")
        sizes[algorithm] = size
    reader.take(reader.number(1))
    if reader.left:
        raise LogMalformed(f"boot log: {reader.left} bytes too many in its first event")
    return sizes, _Layout(sizes)


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
            raise LogMalformed(f"boot log: algorithm {algorithm:04x} is not the log's, or given twice")
        seen.add(algorithm)
        digest = reader.take(sizes[algorithm])
        if algorithm in BANKS:
            digests[BANKS[algorithm]] = digest
    return _checked(Event(pcr, kind, digests, reader.take(reader.number(4))))


class _Layout:
    """The layout of almost every event: a digest for each algorithm, in the header's order. It is read fast."""

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self._struct = struct.Struct("<III" + "".join(f"H{size}s" for size in sizes.values()) + "I")
        self._algorithms = tuple(sizes)
        self._names = [BANKS.get(algorithm, "") for algorithm in sizes]
        self._last = 3 + 2 * len(sizes)

    def read(self, reader: _Reader, events: list[Event]) -> None:
        """Move the next events from *reader* to *events*, up to the first that does not have this layout.

        The caller handles the rest: another form, padding, a size or a PCR out of bounds.
        """
        data, at, head, last = reader.data, reader.at, self._struct.size, self._last
        unpack, algorithms, names, make = self._struct.unpack_from, self._algorithms, self._names, tuple.__new__
        count, size, unknown = len(algorithms), len(data), "" in names
        while at + head <= size and len(events) < MAX_EVENTS:
            found = unpack(data, at)
            pcr, kind, start = found[0], found[1], at + head
            end = start + found[-1]
            if found[2] != count or found[3:last:2] != algorithms or pcr >= PCRS or end > size or not (pcr or kind):
                break
            digests = dict(zip(names, found[4:last:2]))  # noqa: B905 - as many, by the struct; this is a hot loop
            if unknown:
                digests.pop("")
            events.append(make(Event, (pcr, kind, digests, data[start:end])))
            at = end
        reader.at = at


def _checked(event: Event) -> Event:
    if event.type != NO_ACTION and event.pcr >= PCRS:
        raise LogMalformed(f"boot log: a measurement into PCR {event.pcr}; PCRs are 0 to {PCRS - 1}")
    return event


def _locality(events: list[Event]) -> int:
    """Return the locality of TPM2_Startup, which is PCR 0's initial value."""
    for event in events:
        if event.type == NO_ACTION and event.data.startswith(_LOCALITY):
            if len(event.data) != len(_LOCALITY) + 1 or event.data[-1] > 4:
                raise LogMalformed("boot log: a startup locality that is none")
            return event.data[-1]
        if event.type == EFI_HCRTM and event.pcr == 0:
            return 4
    return 0
