"""The extensions of PCRs, in order: the boot log's events and, after them, systemd's records, as one sequence.

The sequence of digests of a PCR is proved, because it leads to the quoted value. The type, the description and the log
that an event stands in are only the sender's word. So both logs are one sequence here, and data counts only as a
preimage of the digest. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from netspace.attestation import eventlog, events, measured, measurelog
from netspace.attestation.eventlog import NO_ACTION, Event, EventLog
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.measurelog import Record
from netspace.attestation.refusals import NoBootLog

# Before what GRUB measures, its log says what it is: the text after it is what was measured.
_GRUB = (*events.GRUB, b"grub_cmd: ")


class Extension(NamedTuple):
    """One extension of a PCR.

    :param source: the event or record that tells of it.
    """

    digest: bytes
    source: Event | Record

    @property
    def kind(self) -> int | None:
        """The type that the log gives it; None for systemd's. It chooses a message, and decides nothing."""
        return self.source.type if isinstance(self.source, Event) else None

    @property
    def claimed(self) -> str:
        """Return the log's name for it, for a message: 80 characters at most."""
        if not isinstance(self.source, Event):
            return f"systemd's {self.source.kind!r:.32}"
        said = events.describe(self.source)
        return repr(str(said.get("text") or said.get("path") or said.get("variable") or said["type"])[-80:])

    def preimages(self) -> Iterator[bytes]:
        """Yield the candidates for the measured data: the logged data, and the logged data without known additions.

        Old shims log a byte more of an authority than they measure; systemd-boot before v251 logged one less of a
        command line; GRUB logs a word before a text, and a NUL after it.
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
        """Return the data that was measured, where it is known."""
        return next(self.preimages(), None)


class Logs(NamedTuple):
    """The two logs of a boot; the second is empty where systemd kept none."""

    boot: EventLog
    records: tuple[Record, ...]

    def replayed(self) -> dict[int, bytes]:
        """Return the PCR values that both logs lead to."""
        return measurelog.extend(self.boot.replay(BANK), self.records, BANK)

    def of(self, pcrs: Collection[int]) -> Mapping[int, list[Extension]]:
        """Return what *pcrs* were extended with."""
        return of(self.boot, self.records, pcrs)


def read(evidence: Evidence) -> Logs:
    """Read the logs that came with *evidence*.

    :raises NoBootLog: when there is no boot log.
    :raises Refused: when a log is malformed.
    """
    if evidence.boot_log is None:
        raise NoBootLog("the firmware gives no boot log")
    boot = eventlog.parse(evidence.boot_log)
    return Logs(boot, measurelog.parse(evidence.systemd_log) if evidence.systemd_log is not None else ())


def is_word(pcr: int, one: Extension) -> bool:
    """Return whether systemd measures this, and nothing else does: it adds no trust, wherever it stands."""
    if one.digest in measured.WORDS.get(pcr, ()):
        return True
    return pcr == 9 and any(map(measured.nvpcr, one.preimages()))


def of(log: EventLog, records: Collection[Record], pcrs: Collection[int]) -> Mapping[int, list[Extension]]:
    """Return what *pcrs* were extended with."""
    found: dict[int, list[Extension]] = {pcr: [] for pcr in pcrs}
    for event in log.events:
        if event.pcr in found and event.type != NO_ACTION:
            found[event.pcr].append(Extension(event.digests[BANK], event))
    for record in records:
        if record.pcr in found:
            found[record.pcr].append(Extension(record.digests[BANK], record))
    return found
