"""The adversary of boots against the terms of ``tcb``: no forgery reaches L4.

If one check is removed, the search finds the hole.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from adversary import base_boots, search
from adversary.claims import Claim
from adversary.search import Hole, Report

from netspace.attestation.logs import boot_entries
from netspace.attestation.logs.boot_entries import Kind
from netspace.attestation.verifier import tcb_rules

FORGERIES = int(os.environ.get("NETSPACE_FORGERIES", "5000")) // 10
SEEDS = {"same": 1, "new": int(os.environ.get("NETSPACE_SEED") or random.SystemRandom().randrange(2**32))}
EACH = 25


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", base_boots.KINDS)
def test_no_forgery_of_a_boot_on_a_bad_base_reaches_l4(kind: str, seed: str) -> None:
    count = FORGERIES // len(base_boots.KINDS) // len(SEEDS)
    report = search.campaign(lambda chance: base_boots.make(chance, (kind,)), count, SEEDS[seed], EACH)
    assert not report.holes, str(report)
    assert report.forgeries >= count


@pytest.mark.parametrize("kind", base_boots.KINDS)
def test_a_bad_base_is_refused_for_what_is_bad(kind: str) -> None:
    chance = random.Random(3)
    made = [one for _ in range(12) if not isinstance(one := base_boots.make(chance, (kind,)), str)]
    assert len(made) > 3
    assert {one.refusal(one.honest()).partition(":")[0] for one in made} == {base_boots.CODES[kind]}


def test_no_claim_makes_up_for_a_term_that_nothing_proves() -> None:
    """With a term that nothing proves, the level is L3 for good and bad bases, whatever the host claims."""
    report = search.campaign(lambda chance: base_boots.make(chance, told=True), FORGERIES // 5, 1, EACH)
    assert not report.holes, str(report)


# -- where a check is taken out, the adversary finds the hole -------------------------
def _labels_believed(patch: Any) -> None:
    """Believe an event's data, whatever was measured."""

    def preimages(one: Any) -> Any:
        yield getattr(one.source, "data", b"")

    patch.setattr(tcb_rules, "_preimages", preimages)


def _unlisted_allowed(patch: Any) -> None:
    """Accept each digest in PCR 1, as if ``platform`` listed it, unless it is a known network entry's.

    So a host that hides the data of a network entry goes unnoticed.
    """
    whole = tcb_rules._network_boot

    def judge(extended: Any, tcb: Any) -> None:
        whole(extended, dataclasses.replace(tcb, platform=frozenset(one.digest for one in extended)))

    patch.setattr(tcb_rules, "_network_boot", judge)


def _networks_local(patch: Any) -> None:
    """Treat each boot entry as one that leads to a local disk."""
    whole = boot_entries._option
    patch.setattr(boot_entries, "_option", lambda data: (one := whole(data)) and one._replace(kind=Kind.LOCAL))


def _order_at_any_time(patch: Any) -> None:
    """Count a boot order that was measured after the firmware's separator."""
    whole = tcb_rules._network_boot

    def judge(extended: Any, tcb: Any) -> None:
        orders = [one for one in extended if (found := tcb_rules.entry(one)) and found.kind is Kind.ORDER]
        whole([*orders, *extended], tcb)

    patch.setattr(tcb_rules, "_network_boot", judge)


def _versions_unjudged(patch: Any) -> None:
    patch.setattr(tcb_rules, "_firmware", lambda *given: None)


def _dma_by_its_label(patch: Any) -> None:
    """Recognize the firmware's event about DMA by its data, which the log's sender chooses, not by its digest."""
    whole = tcb_rules.check

    def check(extended: Any, tcb: Any) -> None:
        said = [one for one in extended.get(7, ()) if getattr(one.source, "data", b"").startswith(b"DMA Protection")]
        whole({**extended, 7: said}, tcb)

    patch.setattr(tcb_rules, "check", check)


TAKEN_OUT: dict[str, tuple[Callable[[Any], None], str, set[str]]] = {
    "data that was measured": (_labels_believed, "network entry", {"relabel", "exchange"}),
    "each digest of PCR 1": (_unlisted_allowed, "network entry", {"relabel", "exchange", "reword"}),
    "where an entry leads": (_networks_local, "network entry", set()),
    "the firmware's own time": (_order_at_any_time, "silent entries", {"extend", "again"}),
    "the firmware's version": (_versions_unjudged, "old firmware", set()),
    "the digest of the firmware's word": (_dma_by_its_label, "DMA unprotected", {"relabel", "exchange"}),
}


@pytest.mark.parametrize("check", TAKEN_OUT)
def test_a_check_of_the_base_that_is_taken_out_is_missed(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_out, kind, moves = TAKEN_OUT[check]
    take_out(monkeypatch)
    hole = first(kind, moves)
    assert hole is not None, f"no hole in {LIMIT} forgeries"
    assert not hole.world.refusal(hole.claim())


def test_a_told_term_that_is_believed_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcb_rules, "told", lambda *given: [])
    chance = random.Random(2)
    worlds = [one for _ in range(20) if not isinstance(one := base_boots.make(chance, told=True), str)]
    monkeypatch.setattr(tcb_rules, "check", lambda *given: None)
    assert any(not one.refusal(one.honest()) for one in worlds)


LIMIT = 4000


def first(kind: str, moves: set[str]) -> Hole[Claim] | None:
    """Search for a forgery of a boot of this *kind* that the verifier accepts (a hole); return the first one.

    If *moves* isn't empty, only a forgery that uses one of these moves (ways to change evidence) counts.
    """
    chance, report = random.Random(2), Report[Claim](2)
    while report.forgeries <= LIMIT:
        world = base_boots.make(chance, (kind,))
        if isinstance(world, str):
            continue
        hole = search.hunt(world, chance, EACH, report) if world.refusal(world.honest()) else Hole(world, (), 0)
        if hole is not None and (not moves or moves & set(hole.shape)):
            return hole
    return None
