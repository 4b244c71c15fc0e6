"""Real measurement lists with a bad event, and a forger who tries to get the level L5 all the same.

A *tape* is the sequence of all real extensions of PCRs since the kernel started. The forger is root, so he can add
extensions of any PCR, but he can't change those of the kernel. He may send any list, in one answer or several. Each
answer has a genuine quote of the PCRs at the time when it is sent. The last answer is sent after the bad event.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from support.attestation import boot_forge

from adversary import list_forger
from adversary.list_claims import (
    BOOT,
    EVIL,
    EVIL_LINE,
    GOOD,
    KEY,
    OTHER_KEY,
    PEM,
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
from netspace.attestation.evidence import Evidence, Measurements
from netspace.attestation.logs import events, ima
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy
from netspace.attestation.refusals import Refused
from netspace.attestation.verifier import appraisal

Rules = dict[str, Any]
Judge = Callable[[Evidence, policy.Policy, tuple[int, int], ima.State | None], tuple[str, ima.State | None]]


# Boots that were refused: many forgeries in a row are of the same.
_BAD_BOOTS: dict[Any, str] = {}


def whole(
    evidence: Evidence, rules: policy.Policy, boot: tuple[int, int], start: ima.State | None
) -> tuple[str, ima.State | None]:
    """Ask the verifier for L5; return its reason for a refusal and its new state.

    The reason is empty if the verifier grants L5.
    """
    key = (rules.fingerprint, evidence.boot_log, tuple(sorted(evidence.pcrs.items())))
    if key in _BAD_BOOTS:  # the list is not looked at
        return _BAD_BOOTS[key], None
    found = appraisal.appraise(evidence, rules, None, boot=boot, start=start)
    said = "" if found.level == 5 else f"L{found.level} {found.code}: {found.reason}"
    if found.level < 4:
        if len(_BAD_BOOTS) > 1000:
            _BAD_BOOTS.clear()
        _BAD_BOOTS[key] = said
    return said, found.ima


def list_alone(
    evidence: Evidence, rules: policy.Policy, boot: tuple[int, int], start: ima.State | None
) -> tuple[str, ima.State | None]:
    """Appraise only the list. The boot counts as good, whatever its logs contain."""
    # Not above: the search runs on older checkouts, too, that have no such module.
    from netspace.attestation.verifier import ima_rules

    assert rules.ima is not None
    try:
        found = ima_rules.judged(evidence, rules.ima, rules.fingerprint, boot, start)
    except Refused as err:
        return str(err), None
    return "" if found.refused is None else found.refused[1], found


@dataclass(frozen=True)
class ListWorld:
    """A boot, the measurements after it, and a policy.

    :ivar bad: number of the first bad line.
    """

    kind: str
    name: str
    promised: bool
    start: dict[int, bytes]
    events: tuple[Event, ...]
    lines: tuple[Line, ...]
    later: tuple[Extend, ...]
    bad: int
    quoted: tuple[int, ...]
    rules: policy.Policy
    ask: Judge = whole
    hopeless: tuple[str, ...] = ("L4 ima-malformed", "L3 log-mismatch")

    def honest(self) -> Claim:
        tape = [Extend(10, line.extended()) for line in self.lines]
        # Before a program is measured. Later it would be of no use: the list was bound to the boot by then.
        tape[1:1] = self.later
        return Claim(tuple(tape), (Round(len(tape), 0, self.lines),), self.events)

    def refusal(self, claim: Claim) -> str:
        state: ima.State | None = None
        said = "nothing was sent"
        raw = _packed(claim.log)
        for one in claim.rounds:
            if one.earlier:
                values = extended(
                    start_values(), [Extend(10, line.extended()) for line in first_lines(start_values())[: one.upto]]
                )
                log = _packed(tuple(boot_forge.log(BOOT).events[1:]))
            else:
                values, log = extended(self.start, claim.tape[: one.upto]), raw
            made = Measurements(b"", b"", values[10], one.first, b"".join(line.raw() for line in one.lines))
            quoted = {pcr: values[pcr] for pcr in self.quoted}
            evidence = Evidence("tpm", b"", b"", b"", quoted, log, None, made)
            said, state = self.ask(evidence, self.rules, (5 if one.earlier else 6, 0), state)
        return said

    def propose(self, chance: random.Random, claim: Claim) -> Move[Claim]:
        return list_forger.propose(Known(self.bad, self.start), chance, claim, self.kind in OF_THE_BOOT)


_PACKED: dict[tuple[int, ...], tuple[tuple[Event, ...], bytes]] = {}


def _packed(log: tuple[Event, ...]) -> bytes:
    """Return the log of these events. The result is cached, since worlds share their events."""
    key = tuple(map(id, log))
    if key not in _PACKED:
        if len(_PACKED) > 1000:
            _PACKED.clear()
        _PACKED[key] = (log, boot_forge.packed(list(log)))
    return _PACKED[key][1]


# -- what is bad --------------------------------------------------------------------------
def _named(chance: random.Random, rules: Rules) -> Line:
    listed = chance.choice(sorted(rules["files"])).encode()
    near = [listed + b" ", b"/x" + listed, listed.rpartition(b"/")[2] + b"\n", b"/" + b"e" * 4094, b"/usr/bin/\xff"]
    bare = [*[b"boot_aggregate"] * 4, b"evil", b"systemd", b"memfd:evil"]
    path = chance.choice([b"/usr/bin/evil", b"/var/cachex/evil", b"/x/var/cache/e", *near, *bare])
    return file(path, EVIL)


def _changed(chance: random.Random, rules: Rules) -> Line:
    return file(chance.choice(sorted(rules["files"])).encode(), EVIL)


def _badly_signed(chance: random.Random, rules: Rules) -> Line:
    other = hashlib.sha256(b"signed").digest()
    cut = signature(KEY, EVIL)[:-1]
    return file(
        b"/usr/bin/evil",
        EVIL,
        chance.choice([signature(OTHER_KEY, EVIL), signature(KEY, other), cut, b"\3\2" + bytes(70), b"\1" + EVIL]),
    )


def _other_template(chance: random.Random, rules: Rules) -> Line:
    path = sized(b"/usr/bin/evil\0")
    digest = sized(b"sha256:\0" + EVIL)
    return chance.choice(
        [
            Line(hashlib.sha1(b"evil").digest() + sized(b"/usr/bin/evil"), b"ima"),
            Line(digest + path, b"mine"),
            Line(sized(b"verity:sha256:\0" + EVIL) + path + sized(b""), b"ima-sigv2"),
            Line(sized(b"ima:sha256:\0" + EVIL) + path, b"ima-ngv2"),
            Line(digest + sized(b"ima_policy_written\0") + sized(b"dont_measure func=BPRM_CHECK"), b"ima-buf"),
            Line(sized(b"sha1:\0" + EVIL[:20]) + path, b"ima-ng"),
            Line(b"", b"mine"),
        ]
    )


@functools.cache
def _digest_like_a_path() -> bytes:
    """Return a digest with ``/v`` at its bytes 8 and 9.

    If the line is parsed by the template ``ima``, its path begins at these bytes, and the policy excludes such paths.
    """
    tried = (hashlib.sha256(b"evil %d" % number).digest() for number in itertools.count())
    return next(digest for digest in tried if digest[8:10] == b"/v")


def _chosen_digest(chance: random.Random, rules: Rules) -> Line:
    rules["exclude"] = ["/v*"]
    return file(b"/usr/bin/" + b"e" * 214, _digest_like_a_path())


def _violation(chance: random.Random, rules: Rules) -> Line:
    return _changed(chance, rules)._replace(digest=VIOLATION)


def _ima_policy(chance: random.Random, rules: Rules) -> Line:
    """Load an IMA policy by its path, so that the kernel measures it; return the list's last line."""
    return file(b"/etc/ima/ima-policy", EVIL)


AMONG = {
    "an evil program": _named,
    "a listed file with other content": _changed,
    "a wrong signature": _badly_signed,
    "a template that allows nothing": _other_template,
    "a digest like a path": _chosen_digest,
    "a violation": _violation,
    "another IMA policy": _ima_policy,
}
OF_THE_BOOT = ("measuring turned off", "a PCR extended after the start")
NOTHING = "nothing bad"
KINDS = (*AMONG, "a kernel started by kexec", *OF_THE_BOOT, "a second boot")


def split(world: ListWorld, at: int) -> Claim:
    """Return the honest claim in two answers, the second from line *at*."""
    claim = world.honest()
    (last,) = claim.rounds
    rounds = (Round(at, 0, last.lines[:at]), dataclasses.replace(last, first=at, lines=last.lines[at:]))
    return dataclasses.replace(claim, rounds=rounds)


def make(chance: random.Random, kinds: Sequence[str] = KINDS, ask: Judge = whole) -> ListWorld | str:
    """Return a random world with a bad event; if the draw permits none, return the reason."""
    kind = chance.choice(kinds)
    rules: Rules = {"files": {}, "keys": [PEM]}
    for line in GOOD[:-1]:
        found = ima.file(ima.Entry(b"", line.template, line.data))
        assert found is not None
        digest = "sha256:" + found.digest.partition(b":\0")[2].hex()
        rules["files"].setdefault(found.path.decode(), []).append(digest)
    if chance.random() < 0.5:
        rules["exclude"] = ["/var/cache/*"]
    if chance.random() < 0.2:
        rules["violations"] = "ignore"
    allow = chance.random() < 0.2
    missing = chance.choice([*[None] * 8, 0, 1, 2, 3, 5, 6, 9])
    quoted = tuple(pcr for pcr in boot_forge.PCRS[BOOT] if pcr != missing)
    boot = _boot_rules(boot_forge.PCRS[BOOT] if kind == NOTHING else quoted)
    found_events, start = tuple(boot_forge.log(BOOT).events[1:]), start_values()
    if kind == "measuring turned off":
        found_events, start = _turned_off(quoted, boot)
    lines, bad = first_lines(start), len(GOOD) + 1
    later: tuple[Extend, ...] = ()
    if kind in AMONG:
        at = bad if kind == "another IMA policy" else chance.randrange(2, bad + 1)
        lines, bad = (*lines[:at], AMONG[kind](chance, rules), *lines[at:]), at
    elif kind == "a kernel started by kexec":
        lines = (*lines, lines[0])
        if allow:
            rules["kexec"] = "allow"
    elif kind == "measuring turned off":
        # A kernel without IMA writes no line at all: then root may write the first one, too.
        lines, bad = ((), 0) if chance.random() < 0.5 else (lines[:1], 1)
    elif kind == "a second boot":
        lines = (*lines, file(b"/usr/bin/evil", EVIL))
    elif kind == NOTHING:
        quoted = boot_forge.PCRS[BOOT]
    else:
        pcr = chance.randrange(10)
        later = (Extend(pcr, hashlib.sha256(b"later").digest(), False),)
        found_events = (*found_events, boot_forge.measured(pcr, events.IPL, b"later"))
    allowed = "kexec" in rules or (kind, rules.get("violations")) == ("a violation", "ignore")
    try:
        read = policy.parse({**boot, "ima": rules})
    except policy.PolicyError as err:
        return f"{kind}: no such policy: {err}"[:120]
    shown = repr(lines[min(bad, len(lines) - 1)].data[44:80]) if lines else "no line"
    name = f"quoted {len(quoted)} PCRs, {shown}"
    return ListWorld(
        kind, name, not allowed and kind != NOTHING, start, found_events, lines, later, bad, quoted, read, ask
    )


def _boot_rules(quoted: tuple[int, ...]) -> dict[str, Any]:
    """Return rules that the recorded boot satisfies, as far as these PCRs can prove them."""
    rules = boot_forge.policy(BOOT)
    boot = rules["boot"]
    if 9 not in quoted:
        for key in ("kernels", "initrds", "files"):
            boot.pop(key)
    boot["unchecked"] = [pcr for pcr in boot["unchecked"] if pcr in quoted]
    return rules


def _turned_off(quoted: tuple[int, ...], boot: dict[str, Any]) -> tuple[tuple[Event, ...], dict[int, bytes]]:
    """Return a boot with a bad kernel command line in GRUB, and a kernel that does not measure its options itself."""

    def edit(found: list[Event]) -> None:
        for at in range(len(found) - 1, -1, -1):
            tag = events.tag(found[at])
            if tag and tag[0] == boot_forge.TAG_OPTIONS:
                del found[at]
            elif found[at].data.startswith(b"kernel_cmdline: "):
                found[at] = boot_forge.measured(8, events.IPL, b"kernel_cmdline: " + EVIL_LINE + b"\0", EVIL_LINE)

    found = list(boot_forge.log(BOOT).events[1:])
    edit(found)
    _, values = boot_forge.edited(BOOT, edit)
    return tuple(found), start_values(values)
