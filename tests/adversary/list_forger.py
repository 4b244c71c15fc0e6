"""A forger's moves on measurement lists: on lines, on answers, and on PCRs, which root may extend."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence

from support.attestation import boot_forge

from adversary.list_claims import (
    EVIL,
    EVIL_LINE,
    GOOD,
    GOOD_LINE,
    LINES,
    OTHER_KEY,
    SIGNED,
    TEMPLATES,
    VIOLATION,
    Claim,
    Extend,
    Known,
    Line,
    Round,
    extended,
    file,
    first_lines,
    signature,
    sized,
    start_values,
)
from adversary.search import Move
from netspace.attestation.logs import events, ima
from netspace.attestation.logs.eventlog import Event


def _on_lines(name: str, said: str, change: Callable[[list[Line]], None], which: int = -1) -> Move[Claim]:
    """Return a move on the lines of one answer; an impossible move leaves the lines unchanged."""

    def apply(claim: Claim) -> Claim:
        if not -len(claim.rounds) <= which < len(claim.rounds):
            return claim
        at = which % len(claim.rounds)
        lines = list(claim.rounds[at].lines)
        try:
            change(lines)
        except IndexError:
            return claim
        changed = dataclasses.replace(claim.rounds[at], lines=tuple(lines))
        return dataclasses.replace(claim, rounds=(*claim.rounds[:at], changed, *claim.rounds[at + 1 :]))

    return Move(name, said, apply)


def _at(world: Known, chance: random.Random, claim: Claim) -> int:
    """Return the number of a line in the last answer.

    In 6 of 10 cases it is the first bad line, if present; else any line.
    """
    lines = claim.rounds[-1].lines
    here = world.bad - claim.rounds[-1].first
    if 0 <= here < len(lines) and chance.random() < 0.6:
        return here
    return chance.randrange(len(lines)) if lines else 0


def _drop(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    at = _at(world, chance, claim)
    return _on_lines("leave out", f"leave out line {at}", lambda lines: lines.__delitem__(at))


def _reorder(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    at, to = _at(world, chance, claim), chance.randrange(LINES)
    return _on_lines("move", f"move line {at} to {to}", lambda lines: lines.insert(to, lines.pop(at)))


def _replace(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    at, good = _at(world, chance, claim), chance.choice(GOOD)
    return _on_lines("replace", f"put a good line for line {at}", lambda lines: lines.__setitem__(at, good))


def _insert(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    at, good = _at(world, chance, claim), chance.choice(GOOD)
    return _on_lines("add", f"add a good line before line {at}", lambda lines: lines.insert(at, good))


def _changed_line(
    name: str, world: Known, chance: random.Random, claim: Claim, change: Callable[[Line], Line]
) -> Move[Claim]:
    at = _at(world, chance, claim)

    def apply(lines: list[Line]) -> None:
        lines[at] = change(lines[at])

    return _on_lines(name, f"{name} of line {at}", apply)


def _relabel(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    template = chance.choice(TEMPLATES)
    return _changed_line("another template", world, chance, claim, lambda line: line._replace(template=template))


def _as_old(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    """Return the move that claims the older template ``ima`` for a line's data.

    The line's hash stays equal if the length of its data fits.
    """

    def change(line: Line) -> Line:
        data = line.data[:20] + sized(line.data[20:276].rstrip(b"\0") if chance_bit else line.data[20:276])
        return line._replace(template=b"ima", data=data)

    chance_bit = chance.random() < 0.5
    return _changed_line("data as of the old template", world, chance, claim, change)


def _wipe(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    digest = chance.choice([VIOLATION, b"", bytes(range(20))])
    return _changed_line("another SHA-1", world, chance, claim, lambda line: line._replace(digest=digest))


def _repcr(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    pcr = chance.choice([0, 8, 9, 10, 11, 14, 23, 24])
    return _changed_line("another PCR", world, chance, claim, lambda line: line._replace(pcr=pcr))


def _rename(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    path = chance.choice([b"boot_aggregate", b"/var/cache/x", b"/init", b"/bin/busybox"])

    def change(line: Line) -> Line:
        found = ima.file(ima.Entry(b"", line.template, line.data))
        return line if found is None else file(path, found.digest.partition(b":\0")[2])

    return _changed_line("another name", world, chance, claim, change)


def _resign(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    made = chance.choice([signature(OTHER_KEY, EVIL), SIGNED.data[-73:], b""])

    def change(line: Line) -> Line:
        return line._replace(data=line.data[:-4] + sized(made))

    return _changed_line("another signature", world, chance, claim, change)


def _appended(
    name: str, said: str, more: Callable[[Claim], Sequence[tuple[Extend, Line | None, Event | None]]]
) -> Move[Claim]:
    """Extend PCRs as root, and add list lines for these extensions."""

    def apply(claim: Claim) -> Claim:
        steps = more(claim)
        if not claim.rounds:
            return claim
        last = claim.rounds[-1]
        tape = (*claim.tape, *(extend for extend, _, _ in steps))
        last = dataclasses.replace(
            last, upto=len(tape), lines=(*last.lines, *(line for _, line, _ in steps if line is not None))
        )
        log = (*claim.log, *(event for _, _, event in steps if event is not None))
        return Claim(tape, (*claim.rounds[:-1], last), log)

    return Move(name, said, apply)


def _typed(lines: Iterable[Line]) -> list[tuple[Extend, Line | None, Event | None]]:
    return [(Extend(10, line.extended(), False), line, None) for line in lines]


def _type_list(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    def more(claim: Claim) -> list[tuple[Extend, Line | None, Event | None]]:
        # Where the kernel wrote no first line, a list begins with the PCRs as they are now.
        begun = any(one.pcr == 10 for one in claim.tape)
        return _typed((*([] if begun else first_lines(extended(world.start, claim.tape))[:1]), *GOOD))

    return _appended("type a good list", "extend PCR 10 with a good list", more)


def _type_line(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    line = chance.choice([*GOOD[:3], file(b"boot_aggregate", EVIL)])
    return _appended("type a line", "extend PCR 10 with a line", lambda _: _typed([line]))


def _type_aggregate(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    def more(claim: Claim) -> list[tuple[Extend, Line | None, Event | None]]:
        return _typed(first_lines(extended(world.start, claim.tape))[:1])

    return _appended("type a boot_aggregate", "extend PCR 10 with a boot_aggregate of the PCRs as they are", more)


def _extend(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    pcr, digest = chance.choice([*range(10), 10, 14]), hashlib.sha256(b"later").digest()
    event = boot_forge.measured(pcr, events.IPL, b"later") if chance.random() < 0.5 else None
    return _appended(f"extend PCR {pcr}", f"extend PCR {pcr}", lambda _: [(Extend(pcr, digest, False), None, event)])


def _good_line(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    event = boot_forge.measured(8, events.IPL, b"kernel_cmdline: " + GOOD_LINE + b"\0", GOOD_LINE)
    step = (Extend(8, event.digests["sha256"], False), None, event)
    return _appended("tell a good command line", "extend PCR 8 with a good command line, and log it", lambda _: [step])


def _hide_line(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    kind, text = chance.choice([(events.ACTION, b"x"), (events.IPL, b"grub_cmd: echo hello\0")])

    def apply(claim: Claim) -> Claim:
        log = [
            Event(8, kind, one.digests, text) if one.data.startswith(b"kernel_cmdline: " + EVIL_LINE) else one
            for one in claim.log
        ]
        return dataclasses.replace(claim, log=tuple(log))

    return Move("hide the command line", "call the bad command line something else", apply)


def _split(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    at = chance.choice([world.bad, world.bad + 1, chance.randrange(1, LINES)])

    def apply(claim: Claim) -> Claim:
        last = claim.rounds[-1]
        cut = at - last.first
        if not 0 < cut < len(last.lines):
            return claim
        earlier = Round(min(at, len(claim.tape)), last.first, last.lines[:cut])
        rest = dataclasses.replace(last, first=at, lines=last.lines[cut:])
        return dataclasses.replace(claim, rounds=(*claim.rounds[:-1], earlier, rest))

    return Move("split", f"send the list in two answers, from line {at}", apply)


def _first_line(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    first = chance.choice([0, 1, world.bad, world.bad + 1, len(claim.rounds[-1].lines), LINES])

    def apply(claim: Claim) -> Claim:
        return dataclasses.replace(
            claim, rounds=(*claim.rounds[:-1], dataclasses.replace(claim.rounds[-1], first=first))
        )

    return Move("another first line", f"call the first line number {first}", apply)


def _nothing_new(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    def apply(claim: Claim) -> Claim:
        last = claim.rounds[-1]
        again = Round(last.upto, last.first + len(last.lines), ())
        return dataclasses.replace(claim, rounds=(*claim.rounds, again)) if len(claim.rounds) < 4 else claim

    return Move("answer again", "answer once more, with no new line", apply)


def _earlier(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    count = chance.choice([len(GOOD) + 1, chance.randrange(1, LINES)])

    def apply(claim: Claim) -> Claim:
        before = Round(count, 0, first_lines(start_values())[:count], earlier=True)
        return dataclasses.replace(claim, rounds=(before, *claim.rounds)) if len(claim.rounds) < 4 else claim

    return Move("a good boot before", f"answer from the boot before, whose {count} lines are good", apply)


def _continue_earlier(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    """Present this boot's list as the continuation of the earlier boot's."""

    def apply(claim: Claim) -> Claim:
        if not claim.rounds[0].earlier or len(claim.rounds) < 2:
            return claim
        count = claim.rounds[0].upto
        last = dataclasses.replace(claim.rounds[-1], first=count, lines=claim.rounds[-1].lines[count:])
        return dataclasses.replace(claim, rounds=(*claim.rounds[:-1], last))

    return Move("continue the boot before", "number the lines as if the boot before went on", apply)


def _fewer(world: Known, chance: random.Random, claim: Claim) -> Move[Claim]:
    def apply(claim: Claim) -> Claim:
        return dataclasses.replace(claim, rounds=claim.rounds[1:]) if len(claim.rounds) > 1 else claim

    return Move("answer less often", "leave the first answer out", apply)


_ON_BOOTS = (_hide_line, _good_line, _extend)
_MOVES = [
    *(_drop, _replace, _relabel, _wipe, _rename, _type_list, _split),
    *(_reorder, _insert, _as_old, _repcr, _resign, _type_line, _type_aggregate),
    *(_first_line, _nothing_new, _earlier, _continue_earlier, _fewer),
    *_ON_BOOTS,
]
_WEIGHTS = [1 if move in _ON_BOOTS else 8 for move in _MOVES]
_BOOT_WEIGHTS = [16 if move in (*_ON_BOOTS, _type_list) else 4 for move in _MOVES]


def propose(world: Known, chance: random.Random, claim: Claim, of_the_boot: bool) -> Move[Claim]:
    """Return a move.

    :param of_the_boot: whether the boot itself is bad, so that moves on its log are more likely.
    """
    return chance.choices(_MOVES, _BOOT_WEIGHTS if of_the_boot else _WEIGHTS)[0](world, chance, claim)
