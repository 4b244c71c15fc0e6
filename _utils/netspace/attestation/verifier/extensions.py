"""The extensions of PCRs, in one sequence: the boot log's events, then systemd's records.

The quoted value proves the sequence of a PCR's digests. An event's type, its description, and the log that contains it
are only claims of the sender. So this module treats both logs as one sequence, and data counts only if its digest was
measured. Pure: no file is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.logs import eventlog, events, measured, systemd
from netspace.attestation.logs.eventlog import NO_ACTION, Event, EventLog
from netspace.attestation.logs.systemd import Record
from netspace.attestation.refusals import NoBootLog

# Labels in GRUB's log. GRUB measures only the text after a label.
_GRUB = (*events.GRUB, b"grub_cmd: ")


class Extension(NamedTuple):
    """One extension of a PCR, and the log's entry for it.

    :param source: the log's event or record of this extension.
    """

    digest: bytes
    source: Event | Record

    @property
    def kind(self) -> int | None:
        """The type that the boot log claims; None for systemd's records. The type only selects a message."""
        return self.source.type if isinstance(self.source, Event) else None

    @property
    def claimed(self) -> str:
        """The description that the log claims, for messages: at most 80 characters."""
        if not isinstance(self.source, Event):
            return f"systemd's {self.source.kind!r:.32}"
        said = events.describe(self.source)
        return repr(str(said.get("text") or said.get("path") or said.get("variable") or said["type"])[-80:])

    def preimages(self) -> Iterator[bytes]:
        """Yield the data that was measured, if it can be derived from the logged data.

        Some programs log other data than they measure. For an authority, old shims log one byte more. For a command
        line, systemd-boot before v251 logs one byte less. GRUB logs a label before a text and a NUL after it.
        """
        for one in self._told():
            if measured.digest(one) == self.digest:
                yield one

    def _told(self) -> Iterator[bytes]:
        if not isinstance(self.source, Event):
            yield self.source.text.encode()
            return
        data = self.source.data
        yield data
        yield data[:-1]
        yield data + b"\0"
        for word in _GRUB:
            if data.startswith(word):
                yield data[len(word) :].removesuffix(b"\0")

    def preimage(self) -> bytes | None:
        """Return the data that was measured; None if the data is not known."""
        return next(self.preimages(), None)


class Logs(NamedTuple):
    """The two logs of a boot. *systemd* is empty if systemd kept no log."""

    boot: EventLog
    records: tuple[Record, ...]

    def replayed(self) -> dict[int, bytes]:
        """Return the PCR values that result from replaying both logs."""
        return systemd.extend(self.boot.replay(BANK), self.records, BANK)

    def of(self, pcrs: Collection[int]) -> Mapping[int, list[Extension]]:
        """Return the extensions of each of *pcrs*, in order."""
        return of(self.boot, self.records, pcrs)


def read(evidence: Evidence) -> Logs:
    """Return the parsed logs of *evidence*.

    :raises NoBootLog: when there is no boot log.
    :raises Refused: when a log is malformed.
    """
    if evidence.boot_log is None:
        raise NoBootLog("the firmware gives no boot log")
    boot = eventlog.parse(evidence.boot_log, BANK)
    return Logs(boot, systemd.parse(evidence.systemd_log) if evidence.systemd_log is not None else ())


def is_word(pcr: int, one: Extension) -> bool:
    """Return whether *one* measures a fixed text such as ``enter-initrd``, or in PCR 9 the name of an NvPCR.

    Such a text gives no information about loaded files. It adds no trust, so it is allowed anywhere.
    """
    if one.digest in measured.WORDS.get(pcr, ()):
        return True
    return pcr == 9 and any(map(measured.nvpcr, one.preimages()))


def of(log: EventLog, records: Collection[Record], pcrs: Collection[int]) -> Mapping[int, list[Extension]]:
    """Return the extensions of each of *pcrs*, in order."""
    found: dict[int, list[Extension]] = {pcr: [] for pcr in pcrs}
    of_pcr, make = found.get, tuple.__new__
    for event in log.events:
        pcr, kind, digests, _ = event
        known = of_pcr(pcr)
        if known is not None and kind != NO_ACTION:
            known.append(make(Extension, (digests[BANK], event)))  # this loop runs for each event of each host
    for record in records:
        if record.pcr in found:
            found[record.pcr].append(Extension(record.digests[BANK], record))
    return found
