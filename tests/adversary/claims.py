"""A forger's claim (the logs that he sends, and his extensions), and the data that he knows."""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass

from support.attestation.boot_forge import TAG_INITRD, TAG_OPTIONS, record, tagged, variable, wide

from adversary.boots import FORMS, SECTIONS, SHIM, Boot, Entry
from netspace.attestation.logs import events
from netspace.attestation.logs.eventlog import NO_ACTION


@dataclass(frozen=True)
class Claim:
    """The logs that a forger sends, and his extensions of PCRs.

    :param events: the boot log's events.
    :param words: the records of systemd's log.
    :param early: extensions before systemd measured.
    :param late: extensions after systemd measured.
    :param header: algorithms that the log claims; a second algorithm has meaningless digests.
    :param cut: number of bytes that are cut off the log's end.
    :param systemd: whether systemd's log is sent.
    """

    events: tuple[Entry, ...]
    words: tuple[Entry, ...]
    early: tuple[tuple[int, bytes], ...] = ()
    late: tuple[tuple[int, bytes], ...] = ()
    header: tuple[int, ...] = (0x000B,)
    cut: int = 0
    systemd: bool = True

    def boot_log(self) -> bytes:
        parts = [_head(self.header), *(_event(one, self.header) for one in self.events)]
        raw = b"".join(parts)
        return raw[: len(raw) - self.cut]

    def systemd_log(self) -> bytes | None:
        return b"".join(map(_record, self.words)) if self.systemd else None


_SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x0027: 32}


@functools.lru_cache
def _head(algorithms: tuple[int, ...]) -> bytes:
    known = b"".join(struct.pack("<HH", one, _SIZES[one]) for one in algorithms)
    data = b"Spec ID Event03\0" + bytes(8) + struct.pack("<I", len(algorithms)) + known + b"\0"
    return struct.pack("<II20xI", 0, NO_ACTION, len(data)) + data


@functools.lru_cache(65_536)
def _event(one: Entry, algorithms: tuple[int, ...]) -> bytes:
    digests = b"".join(
        struct.pack("<H", name) + (one.digest if name == 0x000B else bytes(_SIZES[name])) for name in algorithms
    )
    return (
        struct.pack("<III", one.pcr, one.type, len(algorithms)) + digests + struct.pack("<I", len(one.data)) + one.data
    )


@functools.lru_cache(65_536)
def _record(one: Entry) -> bytes:
    return record(one.pcr, one.digest, one.text, one.kind)


def honest(boot: Boot) -> Claim:
    """Return the claim of an honest sender."""
    return Claim(boot.events, boot.words)


@dataclass(frozen=True)
class Knowledge:
    """Data that a forger knows: good boots and the policy.

    :param good: a boot that the verifier accepts.
    :param digests: digests that the policy allows.
    :param lines: command lines that the policy allows.
    :param quoted: the quoted PCRs.
    """

    good: Boot
    digests: tuple[bytes, ...]
    lines: tuple[str, ...]
    quoted: tuple[int, ...]

    def likely(self, chance: random.Random, pcr: int | None = None) -> int:
        """Return a PCR: *pcr* in most cases, else mostly one of the quoted PCRs."""
        if pcr is not None and chance.random() < 0.6:
            return pcr
        return chance.choice(self.quoted) if chance.random() < 0.9 else chance.randrange(24)

    @functools.cached_property
    def crafted(self) -> tuple[bytes, ...]:
        """Return event data that the verifier's rules interpret, such as command lines and variables."""
        lines = [line.encode() for line in self.lines]
        return (
            *(form.encode() + line + b"\0" for form in FORMS for line in lines),
            *(wide(line) for line in self.lines),
            tagged(TAG_INITRD, "Linux initrd"),
            tagged(TAG_OPTIONS, "LOADED_IMAGE::LoadOptions"),
            *(f".{name}\0".encode("utf-16-le") for name in SECTIONS),
            variable(events.GLOBAL, "SecureBoot", b"\1"),
            variable(events.SECURITY, "dbx", b""),
            variable(SHIM, "SbatLevel", b"sbat,1,2025021800\nshim,4\ngrub,5\n"),
            variable(SHIM, "MokListTrusted", b"\1"),
            *(b"MokList\0", b"MokListX\0", b"MokSBState\0", b"MokListTrusted\0", b"MokPolicy\0"),
            *(b"grub_cmd: echo\0", b"(hd0,gpt1)/vmlinuz\0", b"vmlinuz\0", b"/initrd.img\0"),
        )
