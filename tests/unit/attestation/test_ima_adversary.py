"""No forged measurement list reaches L5: thousands of forgeries, and a search for the shortest successful one.

``NETSPACE_FORGERIES`` is the number of forgeries, ``NETSPACE_SEED`` another seed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from adversary import lists, search
from support import sampling
from support.attestation.taken_out import commands_unjudged

from netspace.attestation.logs import ima
from netspace.attestation.verifier import ima_rules

FORGERIES = int(os.environ.get("NETSPACE_FORGERIES", "5000"))
SEED = int(os.environ.get("NETSPACE_SEED", "1"))
# Enough that a hole of each kind is found, whichever was found first.
FEW = 1500


def test_no_forged_measurement_list_reaches_l5() -> None:
    report = search.campaign(lists.make, FORGERIES, SEED, each=50)
    assert not report.holes, str(report)
    # The worlds were of every kind, and the forger got to where lists are judged.
    if FORGERIES >= 5000:
        assert set(report.real) == set(lists.KINDS), str(report)
    codes = {reason.split(":")[0] for reason in report.refusals}
    assert {"L# ima-mismatch", "L# ima-gap", "L# ima-file"} <= codes, str(report)


def test_good_lists_are_believed_in_one_answer_or_more() -> None:
    chance = random.Random(SEED)
    for _ in range(20):
        world = lists.make(chance, (lists.NOTHING,))
        assert isinstance(world, lists.ListWorld) and not world.promised
        claim = world.honest()
        assert world.refusal(claim) == ""
        assert world.refusal(lists.split(world, chance.randrange(1, len(world.lines)))) == ""
        again = dataclasses.replace(claim.rounds[0], first=len(world.lines), lines=())
        assert world.refusal(dataclasses.replace(claim, rounds=(*claim.rounds, again))) == ""


Patch = Callable[[pytest.MonkeyPatch], None]


def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept every ``boot_aggregate`` after the list's first line without a check."""
    monkeypatch.setattr(ima_rules, "_started_by_kexec", lambda *_: None)


def aggregate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the check of the first line."""
    monkeypatch.setattr(ima_rules, "_check_aggregate", lambda *_: None)


def quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the verifier accept a list whose first line (a digest of PCRs) can't be compared, as if it fitted."""
    real = ima_rules._check_aggregate

    def lenient(*given: Any) -> None:
        try:
            real(*given)
        except ima_rules.UnprovedAggregate:
            return

    monkeypatch.setattr(ima_rules, "_check_aggregate", lenient)


def replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept a list whose replay does not give the quoted value."""
    monkeypatch.setattr(ima, "match", lambda entries, start, quoted: len(entries))


def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept NULs in a path."""
    real = ima.file

    def lenient(entry: ima.Entry) -> ima.File | None:
        old = entry.template == b"ima" and len(entry.data) <= 24 + 256
        return ima.File(entry.data[24:], b"sha1:\0" + entry.data[:20]) if old else real(entry)

    monkeypatch.setattr(ima, "file", lenient)


def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the next answer that a line was refused."""
    judged = ima_rules.judged

    def forgetful(evidence: Any, policy: Any, fingerprint: str, boot: Any, start: Any) -> Any:
        forgotten = None if start is None else dataclasses.replace(start, refused=None)
        return judged(evidence, policy, fingerprint, boot, forgotten)

    monkeypatch.setattr(ima_rules, "judged", forgetful)


def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the verifier check only the events of PCR 8 that the log calls command lines."""
    monkeypatch.setattr(lists, "_BAD_BOOTS", {})
    commands_unjudged(monkeypatch)


TAKEN_OUT: dict[str, tuple[Patch, str, int]] = {
    "the name boot_aggregate": (names, "an evil program", 0),
    "the name boot_aggregate after kexec": (names, "a kernel started by kexec", 0),
    "the first line": (aggregate, "a PCR extended after the start", 0),
    "the first line where a PCR is not quoted": (quoted, "a PCR extended after the start", 0),
    "the replay": (replay, "a listed file with other content", 1),
    "the end of a path": (paths, "a digest like a path", 1),
    "the memory": (memory, "a listed file with other content", 1),
    "GRUB's commands": (commands, "measuring turned off", 3),
}


def campaign(kind: str) -> search.Report[lists.Claim]:
    ask = lists.whole if kind == "measuring turned off" else lists.list_alone
    return search.campaign(lambda chance: lists.make(chance, (kind,), ask), FEW, SEED)


# With every check in its place; the outcome is the same for each check whose hole is in worlds of this kind.
unpatched = functools.cache(campaign)


@pytest.mark.parametrize("check", sampling.todays(list(TAKEN_OUT), 4))
def test_a_check_that_is_taken_out_is_missed(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one check removed, the search finds the hole, with no more moves than necessary.

    Every boot counts as good in this test, except a boot with measuring turned off.
    """
    patch, kind, moves = TAKEN_OUT[check]
    assert not unpatched(kind).holes
    patch(monkeypatch)
    report = campaign(kind)
    assert report.holes, str(report)
    assert len(next(iter(report.shortest().values())).moves) == moves, str(report)
