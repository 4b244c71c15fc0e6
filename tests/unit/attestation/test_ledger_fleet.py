"""The fleet's verifier asks for the ledger of runs if the policy demands it, judges it, and reports it in results."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.attestation.honest_minion import MASTER, NOW, Minion
from support.attestation.ledger_forge import DAY, Ledger, digest, run
from support.attestation.small_fleet import BOOT, Store, signed, trusted

from netspace import jose
from netspace.attestation import ear, refusals
from netspace.attestation.evidence import Context
from netspace.attestation.fleet import ledgers
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.fleet.origin import Unproved
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.minion import attester, software_key
from netspace.attestation.policy import policy
from netspace.attestation.policy_reading import PolicyError
from netspace.layout import Layout
from netspace.ledger import entries


def put(made: Fleet, minion: Minion, version: int, **rules: Any) -> None:
    boot = {"pcrs": {str(n): [minion.tpm.pcrs[n].hex()] for n in range(8)}}
    made.policies.put("web", {"version": version, "boot": boot, "environments": rules})


@pytest.fixture
def ledger(made: Fleet, minion: Minion) -> Ledger:
    trusted(made, minion)
    put(made, minion, 2)
    found = Ledger(minion.tpm)
    found.start("web", "orders")
    return found


def judge(made: Fleet, ledger: Ledger, first: int | None = None, boot: str = BOOT, **change: Any) -> dict[str, Any]:
    """Judge an answer of ``web1`` with this ledger.

    :param change: changes to an honest answer.
    """
    asked = made.ask("web1")
    context = Context(MASTER, "web1", asked.session, asked.nonce, binding=boot.encode())
    begin = (
        (asked.wire()["ledger"]["first"] if asked.ledger and asked.ledger[0] == boot else 0) if first is None else first
    )
    proof = dataclasses.replace(ledger.proof(context, begin), **change)
    evidence = dataclasses.replace(ledger.tpm.evidence(context), ledger=proof).wire()
    return made.judge(asked, signed(asked, {"boot": boot, "evidence": evidence}), NOW)


def submodules(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = jose.unchecked(record["token"])[1]["submods"]
    return found


def test_result_tells_each_environment(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    assert made.ask("web1").wire()["ledger"] == {"boot": "", "first": 0}
    record = judge(made, ledger)
    assert (record["level"], record["code"]) == (3, "log-none"), record["reason"]
    found = submodules(record)
    assert set(found) == {"host", "env:web", "env:orders"}
    assert found["env:web"] == {
        "ear_status": "affirming",
        "netspace_code": "ok",
        "netspace_image": f"sha256:{run('web').image}",
        "netspace_configuration": f"sha256:{run('web').configuration}",
        "netspace_certificate": f"sha256:{run('web').certificate}",
        "netspace_started": DAY,
        "netspace_line": 2,
    }
    told = found["host"]["netspace_ledger"]
    assert (told["lines"], told["running"]) == (3, 2)
    assert told["netspace_declaration"] == f"sha256:{digest('declaration')}"
    asked = {"minion": "web1", "nonce": jose.unchecked(record["token"])[1]["eat_nonce"], "boot": BOOT, "now": NOW}
    claims = ear.check(record["token"], [made.signer.jwk], versions={}, **asked)
    assert set(claims.environments) == {"web", "orders"} and claims.ledger == told


def test_ledger_goes_on_where_it_was_judged(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    judge(made, ledger)
    assert made.ask("web1").wire()["ledger"] == {"boot": BOOT, "first": 3}
    ledger.end("orders")
    assert set(submodules(judge(made, ledger))) == {"host", "env:web"}
    assert made.ask("web1").ledger == (BOOT, 4)
    assert set(submodules(judge(made, ledger))) == {"host", "env:web"}, "nothing new"


def test_stored_runs_count_only_by_their_digest(made: Fleet, minion: Minion, ledger: Ledger, store: Store) -> None:
    judge(made, ledger)
    (place,) = (key for key in store.data if key[0] == "runs")
    store.data[place] = {"runs": {}}
    assert made.ask("web1").ledger == ("", 0)
    assert judge(made, ledger, 3)["code"] == "ledger-malformed", "runs would be hidden"
    assert set(submodules(judge(made, ledger))) == {"host", "env:web", "env:orders"}


def test_refused_ledger_is_not_forgotten(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    judge(made, ledger)
    whole = list(ledger.lines)
    ledger.lines = ledger.lines[:2]
    for _ in range(2):
        record = judge(made, ledger, 0)
        assert (record["level"], record["code"]) == (0, "ledger-rolled-back")
        assert set(submodules(record)) == {"host"}
    ledger.lines = whole
    assert judge(made, ledger)["level"] == 3


def test_new_boot_has_a_new_ledger(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    judge(made, ledger)
    later = Ledger(minion.tpm, "boot-2")
    assert judge(made, later, boot="boot-2")["code"] == "ledger-rolled-back", "the TPM was not reset"
    minion.tpm.clock = (9000, 6, 0, 1)
    assert judge(made, later, boot="boot-2")["level"] == 3


LIMITS = {
    "image": ({"images": [digest("image good")]}, "ledger-image"),
    "configuration": ({"configurations": [digest("configuration web")]}, "ledger-configuration"),
    "declaration": ({"declarations": [digest("another")]}, "ledger-declaration"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_the_policy_lacks_lowers_the_level(made: Fleet, minion: Minion, ledger: Ledger, name: str) -> None:
    rules, code = LIMITS[name]
    ledger.start("evil", image="evil")
    put(made, minion, 3, **rules)
    record = judge(made, ledger)
    assert (record["level"], record["code"]) == (2, code), record["reason"]
    found = submodules(record)
    status = {name: fields["ear_status"] for name, fields in found.items()}
    if name != "declaration":
        assert status["env:evil"] == "contraindicated" and found["env:evil"]["netspace_code"] == code
    good = [digest("image good"), digest("image evil")]
    put(made, minion, 4, images=good, configurations=[run(one).configuration for one in ("web", "orders", "evil")])
    assert judge(made, ledger)["level"] == 3
    put(made, minion, 5, images=good[:1])
    ledger.end("evil")
    assert judge(made, ledger)["level"] == 3, "only what runs counts"


def test_missing_or_full_ledger_lowers_the_level(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    asked = made.ask("web1")
    context = Context(MASTER, "web1", asked.session, asked.nonce, binding=BOOT.encode())
    answer = {"boot": BOOT, "evidence": minion.tpm.evidence(context).wire()}
    record = made.judge(asked, signed(asked, answer), NOW)
    assert (record["level"], record["code"]) == (2, refusals.NoLedger.code)
    ledger.lines.append(entries.full())
    assert judge(made, ledger)["code"] == refusals.LedgerFull.code


def test_policy_without_the_section_asks_for_none(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    judge(made, ledger)
    made.policies.put("web", {"version": 3})
    assert "ledger" not in made.ask("web1").wire()
    found = submodules(judge(made, ledger))
    assert set(found) == {"host"} and "netspace_ledger" not in found["host"]


def test_long_result_lists_refused_ones_first(made: Fleet, minion: Minion, ledger: Ledger) -> None:
    ledger.start(*(f"e{number}" for number in range(400)))
    ledger.start("zebra", image="evil")
    put(made, minion, 3, images=[digest("image good")])
    record = judge(made, ledger)
    found = submodules(record)
    assert len(found) == 1 + ledgers.MOST_LISTED and "env:zebra" in found
    assert found["host"]["netspace_ledger"]["running"] == 403
    assert len(record["token"]) < ear.MAX_TOKEN


def by_software(asked: Asked, key: software_key.Key, proof: LedgerProof, **change: Any) -> dict[str, Any]:
    context = Context(MASTER, asked.minion, asked.session, asked.nonce, proof.binding(), BOOT.encode())
    evidence = attester.by_key(key, context, dataclasses.replace(proof, **change)).wire()
    return signed(asked, {"boot": BOOT, "evidence": evidence})


def test_software_key_signs_its_ledger(made: Fleet, fake_tpm: Any, tmp_path: Any) -> None:
    made.policies.put("web", {"version": 1, "environments": {}})
    (tmp_path / "etc").mkdir()
    key, ledger = software_key.load(Layout(root=tmp_path)), Ledger(fake_tpm)
    ledger.start("web")
    proof = LedgerProof(0, b"".join(ledger.lines))
    asked = made.ask("web9")
    record = made.judge(asked, by_software(asked, key, proof), NOW)
    assert (record["level"], record["code"]) == (1, "software-key")
    assert submodules(record)["env:web"]["ear_status"] == "warning"
    asked = made.ask("web9")
    changed = by_software(asked, key, proof, lines=b"".join(ledger.lines[:2]))
    changed.pop("salt")
    with pytest.raises(Unproved, match="qualifying-data"):
        made.judge(asked, changed, NOW)


def test_section_of_a_policy_is_parsed_strictly() -> None:
    assert policy.parse({"version": 1, "environments": {}}).environments is not None
    for wrong in ({"image": []}, {"images": ["x"]}, {"images": "x"}, [], None):
        with pytest.raises(PolicyError):
            policy.parse({"version": 1, "environments": wrong})
