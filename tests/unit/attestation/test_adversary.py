"""The adversary of boots: no forgery of a bad boot reaches L4, and the search finds the hole when a check is removed.

``NETSPACE_FORGERIES`` is the number of forgeries, by default 5,000. Half of them have a fixed seed, half have the seed
``NETSPACE_SEED``. By default that seed is new in each run, and a failure prints it. ``python tests/adversary`` is the
long run.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from adversary import bad_boots, boots, policies, search, worlds
from adversary.claims import Claim
from adversary.search import Hole, Move, Report
from support import sampling
from support.attestation.taken_out import commands_unjudged

from netspace.attestation.evidence import Context
from netspace.attestation.logs import events
from netspace.attestation.policy import boot, policy
from netspace.attestation.verifier import appraisal as judge
from netspace.attestation.verifier import attestation_keys, boot_rules, extensions, platform_rules, verifier
from netspace.attestation.verifier.extensions import Extension
from netspace.attestation.verifier.verifier import Expected

FORGERIES = int(os.environ.get("NETSPACE_FORGERIES", "5000"))
SEEDS = {"same": 1, "new": int(os.environ.get("NETSPACE_SEED") or random.SystemRandom().randrange(2**32))}
EACH = 40
NOW = 1_700_000_000.0
CONTEXT = Context("verifier", "host", "session", bytes(range(32)))


def tried(kind: str, count: int, seed: int, foreign: float = 0.3) -> Report[Claim]:
    return search.campaign(lambda chance: worlds.make(chance, (kind,), foreign), count, seed, EACH)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", bad_boots.KINDS)
def test_no_forgery_of_a_bad_boot_reaches_l4(kind: str, seed: str) -> None:
    count = FORGERIES // len(bad_boots.KINDS) // len(SEEDS)
    report = tried(kind, count, SEEDS[seed])
    assert not report.holes, str(report)
    if count >= 100:  # most forgeries pass the replay, so that a rule of the policy refuses them
        clumsy = sum(number for code, number in report.codes().items() if code.startswith(worlds.BootWorld.hopeless))
        assert clumsy < report.forgeries / 2, f"{report}\nrefused as: {report.codes()}"


# -- where a check is taken out, the adversary finds the hole -------------------------
def _records_unjudged(patch: Any) -> None:
    """Remove the check of records in systemd's log, as in an earlier version; the records still count in the replay."""
    whole = extensions.of
    patch.setattr(extensions, "of", lambda log, records, pcrs: whole(log, (), pcrs))


def _words_of_any_text(patch: Any) -> None:
    """Accept any text in systemd's log if it has the digest of its record, as an earlier version did.

    An attacker chooses such texts.
    """
    whole = extensions.of
    patch.setattr(
        extensions,
        "of",
        lambda log, records, pcrs: whole(log, [one for one in records if not one.proved("sha256")], pcrs),
    )


def _actions_of_any_text(patch: Any) -> None:
    """Ignore an event in PCR 4 if its type says that it is no program, and its data has the measured digest.

    An earlier version made this mistake.
    """
    whole = boot_rules._applications
    harmless = (events.SEPARATOR, events.ACTION, events.EFI_ACTION)

    def judge(extended: Collection[Extension], *given: Any) -> None:
        whole([one for one in extended if one.kind not in harmless or one.preimage() is None], *given)

    patch.setattr(boot_rules, "_applications", judge)


def _starters_unjudged(patch: Any) -> None:
    """Let any program start a listed program, as an earlier version did."""
    whole = boot_rules._applications
    patch.setattr(boot_rules, "_applications", lambda extended, allowed, started_by: whole(extended, allowed, {}))


def _labels_believed(patch: Any) -> None:
    """Use an event's data, even if the data was not measured."""
    patch.setattr(Extension, "preimages", lambda one: iter([getattr(one.source, "data", b"")]))


def _shim_unjudged(patch: Any) -> None:
    """Remove the check of the values that shim measures about itself."""
    whole = platform_rules._authority

    def take(found: Any, read: Any) -> None:
        if read is None or read.name != "MokSBState":
            whole(found, read)

    patch.setattr(platform_rules, "check_shim", lambda extended, rules: None)
    patch.setattr(platform_rules, "_authority", take)


def _gaps_open(patch: Any) -> None:
    """Accept policies with rules that depend on PCRs which the TPM doesn't quote, or for which any value is allowed."""
    whole = extensions.of
    patch.setattr(boot, "gaps", lambda *given: [])
    patch.setattr(
        extensions, "of", lambda log, records, pcrs: {pcr: [] for pcr in range(24)} | whole(log, records, pcrs)
    )


def _remembered_by_logs(patch: Any) -> None:
    """Recognize a remembered good boot by its logs alone, whatever the TPM's values are."""
    whole = judge.identity
    patch.setattr(judge, "identity", lambda sent, *given: whole(dataclasses.replace(sent, pcrs={}), *given))


# What is taken out, a kind of bad boot, and moves one of which the shortest sequence has; no moves: whatever it has.
PROGRAMS = ("applications", "started_by", "kernels", "initrds", "files", "command_lines", "grub_commands")
TAKEN_OUT: dict[str, tuple[Callable[[Any], None], str, set[str]]] = {
    "systemd's records, programs": (_records_unjudged, "program", {"carry"}),
    "systemd's records, Secure Boot": (_records_unjudged, "Secure Boot off", {"carry"}),
    "systemd's words, files": (_words_of_any_text, "file", {"carry"}),
    "systemd's words, initrds": (_words_of_any_text, "initrd", {"carry"}),
    "actions": (_actions_of_any_text, "program", {"relabel"}),
    "GRUB's commands": (commands_unjudged, "command line", {"relabel"}),
    "data that was measured": (_labels_believed, "Secure Boot off", {"relabel", "exchange"}),
    "revocations that were measured": (_labels_believed, "old dbx", {"relabel"}),
    "who starts a program": (_starters_unjudged, "boot entry", {"extend", "again"}),
    "gaps, shims that say nothing": (_gaps_open, "old shim", {"extend", "again"}),
    "shim's state": (_shim_unjudged, "shim insecure", set()),
    "gaps, drivers": (_gaps_open, "driver", set()),
    "gaps, initrds": (_gaps_open, "initrd", set()),
    "a good boot's values, programs": (_remembered_by_logs, "program", set()),
    "a good boot's values, Secure Boot": (_remembered_by_logs, "Secure Boot off", set()),
}


WITHOUT = {"shim's state": (*PROGRAMS, "sbat"), "gaps, shims that say nothing": PROGRAMS}


@pytest.fixture
def nothing_learned() -> Iterator[None]:
    """Forget the learned policies before and after the test.

    Other tests have learned policies, and this test may learn some with a verifier that lacks a check.
    """
    policies.learned.cache_clear()
    yield
    policies.learned.cache_clear()


@pytest.mark.usefixtures("nothing_learned")
@pytest.mark.parametrize("check", sampling.todays(list(TAKEN_OUT), 3))
def test_a_check_that_is_taken_out_is_missed(check: str, monkeypatch: pytest.MonkeyPatch, fake_tpm: Any) -> None:
    take_out, kind, moves = TAKEN_OUT[check]
    take_out(monkeypatch)
    hole = first(kind, moves, WITHOUT.get(check, ()))
    assert hole is not None, f"no hole in {LIMIT} forgeries"
    assert level(hole, fake_tpm) == 4


LIMIT = 30_000


def first(kind: str, moves: set[str], without: tuple[str, ...]) -> Hole[Claim] | None:
    """Search for a forgery of a boot of this *kind* that the verifier accepts (a hole); return the first one.

    If *moves* isn't empty, only a forgery that uses one of these moves (ways to change evidence) counts.
    """
    chance, report = random.Random(2), Report[Claim](2)
    for _ in range(LIMIT):
        world = worlds.make(chance, (kind,), 0.0, without)
        if report.forgeries > LIMIT:
            break
        if isinstance(world, str) or not world.promised:
            continue
        hole = search.hunt(world, chance, EACH, report) if world.refusal(world.honest()) else Hole(world, (), 0)
        if hole is not None and (not moves or moves & set(hole.shape)):
            return hole
    return None


def level(hole: Hole[Claim], tpm: Any) -> int:
    """Return the level that the whole verifier gives to a hole's forged evidence, signed as by a genuine TPM."""
    assert isinstance(hole.world, worlds.BootWorld)
    sent = hole.world.evidence(hole.claim())
    pcrs = tuple(sorted(sent.pcrs))
    tpm.pcrs = {**tpm.pcrs, **sent.pcrs}
    signed = dataclasses.replace(tpm.evidence(CONTEXT, pcrs), boot_log=sent.boot_log, systemd_log=sent.systemd_log)
    made = attestation_keys.challenge(tpm.enrolment(), CONTEXT, roots=[], pinned=None, now=NOW)
    bound = made.redeem(CONTEXT.activation(tpm.activate(made.blob, made.encrypted), made._key.name), NOW)
    rules = policy.Policy(1, worlds.FINGERPRINT, hole.world.rules, None)
    expected = Expected(CONTEXT, pcrs, None, None, rules, good_boot=hole.world.good)
    return verifier.verify_quote(signed, dataclasses.replace(bound, level=3), expected).level


# -- the adversary itself ------------------------------------------------------------
CODES = {
    "program": "boot-application",
    "signer": "boot-signer",
    "file": "boot-file",
    "kernel": "boot-file",
    "initrd": "boot-file",
    "command line": "command-line",
    "Secure Boot off": "secure-boot",
    "old dbx": "dbx-old",
    "shim insecure": "shim-insecure",
    "old shim": "sbat-old",
    "boot entry": "boot-application",
    "GRUB command": "boot-file",
    "driver": "pcr-value",
    "old SBAT": "sbat-old",
}


@pytest.mark.parametrize("kind", bad_boots.KINDS)
def test_a_bad_boot_is_refused_for_what_is_bad(kind: str) -> None:
    chance = random.Random(3)
    made = [worlds.make(chance, (kind,), 0.0) for _ in range(150)]
    codes = {one.refusal(one.honest()).partition(":")[0] for one in made if not isinstance(one, str) and one.promised}
    assert CODES[kind] in codes and "" not in codes


def test_recorded_boots_reach_l4_by_some_policy() -> None:
    chance = random.Random(4)
    made = {world.name for _ in range(400) if not isinstance(world := worlds.make(chance, ("program",), 0.0), str)}
    assert all(any(name.startswith(f"{good.name};") for name in made) for good in boots.recorded())


@dataclasses.dataclass
class Toy:
    """A toy verifier: two letters in a claim deceive it; all other letters have no effect."""

    kind: str = "toy"
    name: str = "a and c"
    promised: bool = True
    hopeless: tuple[str, ...] = ("z",)
    begin: str = ""

    def honest(self) -> str:
        return self.begin

    def propose(self, chance: random.Random, claim: str) -> Move[str]:
        letter = chance.choice("abcdefz")
        return Move(letter, f"say {letter}", lambda said: said + letter)

    def refusal(self, claim: str) -> str:
        if "z" in claim:
            return "z: nothing helps"
        missing = [one for one in "ac" if one not in claim]
        return f"{missing[0]}: missing" if missing else ""


def test_the_shortest_sequence_is_found() -> None:
    report: Report[str] = Report(0)
    hole = search.hunt(Toy(), random.Random(0), 1000, report)
    assert hole is not None and sorted(move.name for move in hole.moves) == ["a", "c"]
    long = [Move(one, one, lambda said, one=one: said + one) for one in "bdbdbdbdbdbdabdbdbc"]
    assert [move.name for move in search.shortest(Toy(), long)] == ["a", "c"]


def test_an_honest_claim_that_is_believed_is_a_hole() -> None:
    report = search.campaign(lambda chance: Toy(begin="ac"), 3, 0)
    assert report.shortest().keys() == {("toy",)} and "the honest claim is believed" in str(report)


def test_what_no_rule_names_is_counted_as_harmless() -> None:
    made: Iterator[Toy | str] = iter([Toy(promised=False), "none today", *[Toy(begin="b")] * 100])
    report = search.campaign(lambda chance: next(made), 10, 0, each=1)
    assert report.harmless["toy"] == 1 and report.missing["none today"] == 1 and report.real["toy"] == 10


def test_a_run_that_meets_no_real_world_fails() -> None:
    with pytest.raises(AssertionError, match="hardly any world is real"):
        search.campaign(lambda chance: Toy(promised=False), 10, 0)
