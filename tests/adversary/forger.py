"""A forger's moves on boot logs and PCRs.

The forger is root on the host after the boot. He writes each log that is sent, and extends any PCR with any digest,
before systemd measures or afterwards. He can't undo an extension. In rare cases, a move makes the logs' replay differ
from the PCRs: the verifier refuses such a claim at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

from support.attestation.boot_forge import TAG_OPTIONS, tagged, wide

from adversary import boots
from adversary.boots import FORMS, IPL, LOADED, TAG, Entry, measured
from adversary.claims import Claim, Knowledge
from adversary.search import Move
from netspace.attestation.logs import events
from netspace.attestation.logs.eventlog import NO_ACTION

# What a verifier may think harmless: fixed texts, and words of systemd's.
FIXED = (
    *(b"Calling EFI Application from Boot Option", b"Returning from EFI Application from Boot Option"),
    *(b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"),
    *(b"Exit Boot Services Returned with Failure", b"DMA Protection Disabled", b"UEFI Debug Mode"),
    *(b"Calling INT 19h", b"Returned INT 19h", b"Return via INT 18h", b"Booting BCV Device 80h, - Windows"),
    *(bytes(4), b"\xff" * 4, b"\0\0\0\1", b"", b"\0"),
)
WORDS = (
    *(("phase", one) for one in ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")),
    *(("phase", one) for one in ("os-separator", "nvpcr-separator", "factory-reset", "storage-target-mode")),
    ("filesystem", "file-system:/:ext4::uuid:label:"),
    ("machine-id", "machine-id:00000000000000000000000000000bd1"),
    ("nvpcr-init", "nvpcr-init:hardware:0x1d10200:" + "00" * 32),
    ("product-id", "product-id:0"),
    ("volume-key", "cryptsetup:root:uuid"),
    ("keyslot", "cryptsetup-keyslot:root:uuid"),
    ("", ""),
)
TYPES = (*events.TYPES, 0x80000011, 0x7FFFFFFF, 0)
LIKELY = (events.SEPARATOR, events.ACTION, events.EFI_ACTION, IPL, TAG, events.APPLICATION, events.VARIABLE_AUTHORITY)
REMARKS = (
    *(b"StartupLocality\0" + bytes([one]) for one in (0, 3, 4)),
    *(b"", b"Spec ID Event03\0", b"SP800-155 Event\0" + bytes(16), b"H-CRTM", bytes(4)),
)


# -- how one measurement is told -------------------------------------------------------
def tellings(chance: random.Random, know: Knowledge, entry: Entry) -> bytes:
    """Return data that makes an event appear harmless. Data made from the hashed content is most convincing."""
    how = chance.randrange(10)
    content = entry.content
    if content is not None and how < 6:
        ways = [content, content, content, content + b"\0", content[:-1]]
        ways += [form.encode() + content + b"\0" for form in FORMS]
        ways += [content.decode("latin-1").encode("utf-16-le"), b"x: " + content]
        return chance.choice(ways)
    if how < 8:
        return chance.choice(know.good.events).data
    if how == 8:
        return chance.choice(FIXED)
    return chance.choice(know.crafted)


def _edit(mark: str, change: Callable[[Entry], Entry]) -> Callable[[Claim], Claim]:
    def apply(claim: Claim) -> Claim:
        told = tuple(change(one) if one.mark == mark else one for one in claim.events)
        words = tuple(change(one) if one.mark == mark else one for one in claim.words)
        return dataclasses.replace(claim, events=told, words=words)

    return apply


def _pick(chance: random.Random, entries: Sequence[Entry], know: Knowledge) -> Entry | None:
    """Return a random entry: about half of the time a bad one, otherwise mostly one of a quoted PCR.

    Return None if there are no entries.
    """
    bad = [one for one in entries if one.mark.startswith("bad")]
    if bad and chance.random() < 0.55:
        return chance.choice(bad)
    near = [one for one in entries if one.pcr in know.quoted]
    if near and chance.random() < 0.9:
        return chance.choice(near)
    return chance.choice(entries) if entries else None


Propose = Callable[[random.Random, Knowledge, Claim], "Move[Claim] | None"]


def relabel(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Give an event another type and other data."""
    entry = _pick(chance, claim.events, know)
    if entry is None:
        return None
    kind, data = entry.type, entry.data
    how = chance.randrange(3)
    if how < 2:
        kind = chance.choice(LIKELY if chance.random() < 0.7 else TYPES)
    if how > 0:
        data = tellings(chance, know, entry)
    name = events.type_name(kind)
    said = f"call {_shown(entry)} {name} with data {data[:60]!r} ({len(data)} bytes)"
    return Move("relabel", said, _edit(entry.mark, lambda one: dataclasses.replace(one, type=kind, data=data)))


def exchange(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Exchange type and data of two events of a PCR."""
    first = _pick(chance, claim.events, know)
    others = [one for one in claim.events if first and one.pcr == first.pcr and one.mark != first.mark]
    if first is None or not others:
        return None
    second = chance.choice(others)

    def change(one: Entry) -> Entry:
        other = second if one.mark == first.mark else first
        return dataclasses.replace(one, type=other.type, data=other.data)

    def apply(found: Claim) -> Claim:
        return _edit(second.mark, change)(_edit(first.mark, change)(found))

    return Move("exchange", f"exchange what is said of {_shown(first)} and {_shown(second)}", apply)


def reword(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Change the text of a record in systemd's log."""
    entry = _pick(chance, claim.words, know)
    if entry is None:
        return None
    kind, text = _words(chance, know, entry)
    said = f"reword {_shown(entry)} in systemd's log: {kind} {text[:60]!r}"
    return Move("reword", said, _edit(entry.mark, lambda one: dataclasses.replace(one, kind=kind, text=text)))


def _words(chance: random.Random, know: Knowledge, entry: Entry) -> tuple[str, str]:
    kind, text = chance.choice(WORDS)
    if chance.random() < 0.7:
        text = _text(entry)
    elif chance.random() < 0.2 and know.lines:
        text = chance.choice(know.lines)
    return kind, text


def _text(entry: Entry) -> str:
    try:
        return (entry.content or b"").decode()
    except UnicodeDecodeError:
        return ""


# -- which log, which place ------------------------------------------------------------
def carry(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Move the last events of a PCR to systemd's log. The verifier replays that log later, so the values stay equal."""
    entry = _pick(chance, [one for one in claim.events if one.type != NO_ACTION], know)
    if entry is None:
        return None
    kind = chance.choice(WORDS)[0]

    def apply(found: Claim) -> Claim:
        at = next((at for at, one in enumerate(found.events) if one.mark == entry.mark), None)
        if at is None:
            return found
        tail = [one for one in found.events[at:] if one.pcr == entry.pcr and one.type != NO_ACTION]
        marks = {one.mark for one in tail}
        rest = tuple(one for one in found.events if one.mark not in marks)
        moved = tuple(dataclasses.replace(one, kind=kind, text=_text(one)) for one in tail)
        return dataclasses.replace(found, events=rest, words=(*moved, *found.words))

    return Move("carry", f"move PCR {entry.pcr} from {_shown(entry)} on to systemd's log", apply)


def fetch(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Move the first records of a PCR to the end of the boot log."""
    entry = _pick(chance, claim.words, know)
    if entry is None:
        return None
    kind = chance.choice(LIKELY)

    def apply(found: Claim) -> Claim:
        at = next((at for at, one in enumerate(found.words) if one.mark == entry.mark), None)
        if at is None:
            return found
        head = [one for one in found.words[: at + 1] if one.pcr == entry.pcr]
        marks = {one.mark for one in head}
        rest = tuple(one for one in found.words if one.mark not in marks)
        moved = tuple(dataclasses.replace(one, type=kind, data=one.content or one.data) for one in head)
        return dataclasses.replace(found, events=(*found.events, *moved), words=rest)

    said = f"move PCR {entry.pcr} up to {_shown(entry)} from systemd's log to the boot log"
    return Move("fetch", said, apply)


def reorder(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Move an event to another place, mostly only across events of other PCRs, which doesn't change the replay."""
    entry = _pick(chance, claim.events, know)
    if entry is None:
        return None
    target = _pick(chance, claim.events, know)
    assert target is not None
    far = chance.random() < 0.2

    def apply(found: Claim) -> Claim:
        marks = [one.mark for one in found.events]
        if entry.mark not in marks or target.mark not in marks or entry.mark == target.mark:
            return found
        old, new = marks.index(entry.mark), marks.index(target.mark)
        low, high = min(old, new), max(old, new)
        if not far and any(found.events[at].pcr == entry.pcr for at in range(low, high + 1) if at != old):
            return found
        told = list(found.events)
        told.insert(new, told.pop(old))
        return dataclasses.replace(found, events=tuple(told))

    return Move("reorder", f"move {_shown(entry)} to the place of {_shown(target)}", apply)


# -- extending -------------------------------------------------------------------------
def extend(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Extend a PCR after the boot, and record it in a log."""
    entry = _extension(chance, know)
    mark = f"x{chance.randrange(10**9)}"
    early, spoken = chance.random() < 0.5, chance.random() < 0.4
    kind, text = _words(chance, know, entry)
    entry = dataclasses.replace(entry, mark=mark, kind=kind, text=text)
    said = f"extend PCR {entry.pcr} with {entry.digest.hex()[:12]} ({(entry.content or entry.data)[:50]!r})"
    said += f", told as {events.type_name(entry.type)} with data {entry.data[:40]!r}"

    def apply(found: Claim) -> Claim:
        return _extended(found, [entry], early, spoken)

    return Move("extend", f"{said}{' before systemd measures' if early else ''}", apply)


def _extended(claim: Claim, entries: Sequence[Entry], early: bool, spoken: bool) -> Claim:
    """Insert extensions into the claim in the order of their PCR."""
    told, words = list(claim.events), list(claim.words)
    for entry in entries:
        same = [at for at, one in enumerate(words) if one.pcr == entry.pcr]
        later = [at for at in same if words[at].mark.startswith("w")] if early else []
        if (same and same != later) or (same and not early) or spoken:
            words.insert(later[0] if later else len(words), entry)
        else:
            told.append(entry)
    more = tuple((one.pcr, one.digest) for one in entries)
    found = dataclasses.replace(claim, events=tuple(told), words=tuple(words))
    if early:
        return dataclasses.replace(found, early=(*claim.early, *more))
    return dataclasses.replace(found, late=(*claim.late, *more))


def _extension(chance: random.Random, know: Knowledge) -> Entry:
    """Return a digest that is good in some PCR, and a record of it."""
    how = chance.randrange(10)
    if how < 3:
        one = chance.choice([one for one in know.good.events if one.type != NO_ACTION])
        return dataclasses.replace(one, pcr=know.likely(chance, one.pcr))
    if how < 5 and know.digests:
        pcr = know.likely(chance, chance.choice((*LOADED, 4)))
        kind = events.APPLICATION if pcr == 4 else chance.choice((IPL, IPL, TAG))
        return Entry("", pcr, chance.choice(know.digests), kind, b"(hd0,gpt1)/vmlinuz\0")
    if how < 8 and know.lines:
        line = chance.choice(know.lines)
        options = tagged(TAG_OPTIONS, "LOADED_IMAGE::LoadOptions")
        return chance.choice(
            (
                measured(8, IPL, b"kernel_cmdline: " + line.encode() + b"\0", line.encode()),
                measured(8, IPL, b"grub_kernel_cmdline " + line.encode(), line.encode()),
                measured(8, IPL, wide(line)),
                measured(know.likely(chance, 12), IPL, wide(line)),
                measured(know.likely(chance, 9), TAG, options, wide(line)),
                measured(know.likely(chance, 9), TAG, options, wide(f"BOOT_IMAGE={line}")),
                measured(know.likely(chance, 11), IPL, ".cmdline\0".encode("utf-16-le"), line.encode()),
            )
        )
    if how == 8:
        kind, text = chance.choice(WORDS)
        one = boots.spoken(know.likely(chance, chance.choice((11, 15, 9, 13))), kind, text, "")
        return dataclasses.replace(one, type=chance.choice(LIKELY))
    data = chance.choice((*FIXED, *know.crafted))
    return measured(know.likely(chance), chance.choice(LIKELY), data, mark="")


def again(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Extend a PCR with measurements of a good boot that are missing in this boot, and add their records to a log."""
    pcr = know.likely(chance)
    there = {one.digest for one in (*claim.events, *claim.words) if one.pcr == pcr}
    entries = [one for one in know.good.events if one.pcr == pcr and one.type != NO_ACTION]
    if chance.random() < 0.7:
        entries = [one for one in entries if one.digest not in there]
    if not entries:
        return None
    number = chance.randrange(10**9)
    entries = [dataclasses.replace(one, mark=f"x{number}.{at}") for at, one in enumerate(entries)]
    early = chance.random() < 0.7
    said = f"extend PCR {pcr} with {len(entries)} measurements of a good boot"
    return Move("again", said, lambda found: _extended(found, entries, early, False))


# -- what the replay refuses, most likely ----------------------------------------------
def remark(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Insert an event that is not measured (EV_NO_ACTION)."""
    pcr = know.likely(chance, 0)
    data = chance.choice((*REMARKS, chance.choice(know.good.events).data))
    entry = Entry(f"r{chance.randrange(10**9)}", pcr, chance.choice((bytes(32), b"\xff" * 32)), NO_ACTION, data)
    at = chance.randrange(len(claim.events) + 1)

    def apply(found: Claim) -> Claim:
        told = (*found.events[:at], entry, *found.events[at:])
        return dataclasses.replace(found, events=told)

    return Move("remark", f"put in an event that is not measured: PCR {pcr}, {data[:30]!r}", apply)


def distort(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Drop an event, repeat it, claim it for another PCR, or claim that it wasn't measured."""
    entry = _pick(chance, claim.events, know)
    if entry is None:
        return None
    how = chance.choice(("drop", "double", "deny", "misplace", "empty"))
    pcr = know.likely(chance)

    def apply(found: Claim) -> Claim:
        told: list[Entry] = []
        for one in found.events:
            if one.mark != entry.mark:
                told.append(one)
            elif how == "double":
                told += [one, dataclasses.replace(one, mark=f"{one.mark}'")]
            elif how == "deny":
                told.append(dataclasses.replace(one, type=NO_ACTION))
            elif how == "misplace":
                told.append(dataclasses.replace(one, pcr=pcr))
            elif how == "empty":
                told.append(dataclasses.replace(one, digest=hashlib.sha256(one.data).digest()))
        return dataclasses.replace(found, events=tuple(told))

    return Move(how, f"{how} {_shown(entry)}{f' (PCR {pcr})' if how == 'misplace' else ''}", apply)


def reshape(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim] | None:
    """Change a log as a whole: its algorithms, its length, or its existence."""
    how = chance.randrange(5)
    if how < 3:
        header = chance.choice(((0x000B,), (0x0004, 0x000B), (0x000B, 0x000C), (0x0027, 0x000B), (0x0004,)))
        return Move("header", f"claim the algorithms {header}", lambda one: dataclasses.replace(one, header=header))
    if how == 3:
        cut = chance.choice((1, 4, 32, chance.randrange(500)))
        return Move("cut", f"cut {cut} bytes from the log", lambda one: dataclasses.replace(one, cut=cut))
    return Move("silence", "send no log of systemd's", lambda one: dataclasses.replace(one, systemd=False))


MOVES: Mapping[Propose, int] = {
    relabel: 30,
    carry: 14,
    extend: 22,
    again: 6,
    reword: 8,
    fetch: 4,
    exchange: 4,
    reorder: 5,
    remark: 3,
    distort: 3,
    reshape: 1,
}


def propose(chance: random.Random, know: Knowledge, claim: Claim) -> Move[Claim]:
    """Return a move that may be useful after *claim*."""
    while True:
        (make,) = chance.choices(tuple(MOVES), tuple(MOVES.values()))
        move = make(chance, know, claim)
        if move is not None:
            return move


def _shown(entry: Entry) -> str:
    what = entry.content if entry.content is not None else entry.data
    return f"PCR {entry.pcr}'s {events.type_name(entry.type)} {entry.digest.hex()[:8]} ({what[:32]!r})"
