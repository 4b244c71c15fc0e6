"""The fleet's verifier: states, deadlines, policies, and bad answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.attestation.honest_minion import NOW, Minion, enrolled
from support.attestation.small_fleet import (
    BOOT,
    HOUR,
    Store,
    answer,
    attest,
    by_software,
    judged,
    signed,
    standing,
    trusted,
)

from netspace.attestation import ear
from netspace.attestation.fleet import fleet, groups, host_state, origin
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.minion import software_key
from netspace.errors import NetspaceError
from netspace.layout import Layout


def test_from_unknown_to_trusted_and_stale_by_the_clock_alone(made: Fleet, fake_tpm: Any) -> None:
    assert standing(made) == ("unknown", "L0")
    one = Minion("web1", fake_tpm)
    enrolled(made.registrar, one, NOW)
    assert standing(made) == ("enrolled", "L0")
    record = attest(made, one)
    assert (record["level"], record["code"]) == (2, "ek-untrusted")
    assert standing(made) == ("trusted", "L2")
    assert standing(made, NOW + 7200) == ("trusted", "L2")
    assert standing(made, NOW + 7201) == ("stale", "L0")
    attest(made, one, NOW + 7300)
    assert standing(made, NOW + 7301) == ("trusted", "L2")


def test_a_tpm_that_was_cleared_counts_again_once_it_is_released(made: Fleet, minion: Minion) -> None:
    """A cleared TPM keeps its keys, but its counters restart; it is refused until an operator releases the host."""
    attest(made, minion)
    minion.tpm.clock = (10, 0, 0, 1)
    assert attest(made, minion)["code"] == "clock"
    assert "release" in made.standing("web1", NOW).remedy
    enrolled(made.registrar, minion, NOW)
    assert attest(made, minion)["code"] == "clock", "an enrolment alone forgets nothing"
    released = made.release("web1", NOW)
    assert released is not None and released["minion"] == "web1"
    assert standing(made) == ("unknown", "L0")
    enrolled(made.registrar, minion, NOW)
    assert standing(made) == ("enrolled", "L0")
    assert attest(made, minion)["level"] == 2
    minion.tpm.clock = (9, 0, 0, 1)
    assert attest(made, minion)["code"] == "clock"


def test_a_renewed_host_is_the_same_tpm(made: Fleet, minion: Minion) -> None:
    """A host's attestation key is renewed; its result, clock and boot remain valid."""
    attest(made, minion)
    before = minion.tpm.ak_public
    enrolled(made.registrar, minion, NOW + 10)
    assert minion.tpm.ak_public != before and standing(made, NOW + 10) == ("trusted", "L2")
    minion.tpm.clock = (900, 5, 2, 1)
    assert attest(made, minion, NOW + 20)["code"] == "clock"


def test_a_renewal_while_a_host_is_asked_fails_nobody(made: Fleet, minion: Minion) -> None:
    """The certificate is renewed while another command waits for an answer; an answer with the old key is accepted."""
    asked = made.ask("web1")
    reply = answer(asked, minion.tpm)
    enrolled(made.registrar, minion, NOW + 1)
    assert made.judge(asked, reply, NOW + 2)["level"] == 2
    again = made.ask("web1")
    assert again.wire()["period"] != asked.wire()["period"]
    made.registrar.revoke("web1", "stolen", NOW + 3)
    assert made.judge(again, answer(again, minion.tpm), NOW + 4)["code"] == "ak-certificate-revoked"


def test_a_revoked_certificate_counts_no_more_once_renewed(made: Fleet, minion: Minion) -> None:
    """A host is revoked and enrolled again while a challenge is open; an answer with the revoked key is refused."""
    attest(made, minion)
    asked = made.ask("web1")
    reply = answer(asked, minion.tpm)
    made.registrar.revoke("web1", "stolen", NOW + 1)
    enrolled(made.registrar, minion, NOW + 2)
    assert made.judge(asked, reply, NOW + 3)["code"] == "ak-certificate-revoked"
    assert attest(made, minion, NOW + 4)["level"] == 2


def test_a_host_enrolled_before_periods_goes_on(made: Fleet, minion: Minion, store: Store) -> None:
    """A host whose record and last result have no period, as in earlier versions, stays trusted and can be renewed.

    The master's challenges to such a host have no period.
    """
    from netspace import files

    record = made.registrar.host("web1")
    assert record is not None
    path = made.registrar._path("web1")
    files.write_json(path, {key: record[key] for key in record if key not in ("period", "others", "former")})
    assert "period" not in made.ask("web1").wire()
    result = attest(made, minion)
    old = {key: result[key] for key in result if key not in ("ek", "seen", "firmware")}
    ((kind, key),) = (one for one in store.data if one[0] == "state")
    store.store(kind, key, {"jws": made.signer.sign(ear.STATE, old)})
    assert standing(made) == ("trusted", "L2")
    assert made.registrar.request("web1")["others"] is True, "its TPM's other keys are not known yet"
    enrolled(made.registrar, minion, NOW + 10)
    assert made.ask("web1").wire()["period"] and standing(made, NOW + 10) == ("trusted", "L2")
    minion.tpm.clock = (900, 5, 2, 1)
    assert attest(made, minion, NOW + 20)["code"] == "clock", "its clock was not forgotten with its key"


def test_a_tpm_that_is_reset_within_a_boot_is_refused(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    minion.tpm.clock = (2000, 6, 0, 1)
    assert attest(made, minion)["code"] == "tpm-reset"
    assert attest(made, minion)["code"] == "tpm-reset", "it stays so"
    assert attest(made, minion, boot="another-boot")["level"] == 2
    minion.tpm.clock = (3000, 6, 1, 1)
    assert attest(made, minion, boot="another-boot")["level"] == 2, "a resume is no reset"


def test_other_firmware_of_a_tpm_is_told_by_the_log(made: Fleet, minion: Minion) -> None:
    assert attest(made, minion)["firmware"] == "0000000000000000"
    minion.tpm.firmware = 0x0007_0055_0000_1234
    assert attest(made, minion)["firmware"] == "0007005500001234"
    attest(made, minion)
    lines = [json.loads(line) for line in made.registrar.log.read_bytes().splitlines()]
    (told,) = (line["data"] for line in lines if line["event"] == "tpm-firmware")
    assert told == {"minion": "web1", "old": "0000000000000000", "new": "0007005500001234"}


def test_a_result_from_the_future_is_stale(made: Fleet, minion: Minion) -> None:
    """The master's clock is set back by a day: a result from before is stale, and not valid for longer."""
    attest(made, minion, NOW + 86400)
    assert standing(made, NOW) == ("stale", "L0") and "clock" in made.standing("web1", NOW).reason
    assert standing(made, NOW + 86400 - 1) == ("trusted", "L2"), "a second is no reason"


def test_what_a_host_measured_moves_no_cursor(made: Fleet, minion: Minion) -> None:
    """Control characters of measured texts are escaped in reasons, because terminals show reasons."""
    from support.attestation import boot_forge
    from support.attestation.boot_forge import edited

    from netspace.attestation.logs import events

    def escape(told: list[Any]) -> None:
        data = b"\x1b[2J\x1b]0;good\x07"
        told.insert(0, boot_forge.measured(7, events.EFI_ACTION, data))

    trusted(made, minion)
    known = boot_forge.policy("shim-grub")["boot"]
    rules = {key: known[key] for key in ("secure_boot", "signers", "applications", "pcrs")}
    rules["unchecked"] = [0, 1, 3, 5, 6]
    made.policies.put("web", {"version": 2, "boot": rules})
    raw, pcrs = edited("shim-grub", escape)
    minion.tpm.pcrs.update(pcrs)
    record = judged(made, minion, raw)
    assert record["code"] == "boot-event" and "[2J" in record["reason"]
    assert record["reason"].isprintable()


def test_below_its_groups_minimum_it_is_degraded(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    high = dataclasses.replace(made.group("web1"), minimum=3)
    assert (
        host_state.state("web1", made.results.record("web1"), made.registrar.host("web1"), high, NOW)[0] == "degraded"
    )


def test_a_deadline_that_was_made_shorter_counts_at_once(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    short = dataclasses.replace(made.group("web1"), deadline=60.0)
    host = made.registrar.host("web1")
    assert host_state.state("web1", made.results.record("web1"), host, short, NOW + 61)[0] == "stale"


def test_the_token_is_for_this_host_challenge_and_boot(made: Fleet, minion: Minion) -> None:
    asked = made.ask("web1")
    record = made.judge(asked, answer(asked, minion.tpm), NOW)
    told = ear.check(
        record["token"],
        [made.signer.jwk],
        minion="web1",
        nonce=asked.nonce.hex(),
        boot=BOOT,
        now=NOW,
        versions={},
    )
    assert (told.level, told.group, told.deadline) == (2, "web", NOW + 7200)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"nonce": bytes(32)}, "qualifying-data"),
        ({"session": "other"}, "qualifying-data"),
        ({"host": "web2"}, "qualifying-data"),  # another host's answer, relayed
        ({"verifier": "cd" * 32}, "qualifying-data"),
    ],
)
def test_an_answer_to_something_else_fails_the_host(
    made: Fleet, minion: Minion, changes: dict[str, Any], code: str
) -> None:
    attest(made, minion)
    record = attest(made, minion, **changes)
    assert (record["level"], record["code"]) == (0, code)
    assert standing(made) == ("failed", "L0")
    assert standing(made, NOW + 10 * HOUR) == ("failed", "L0")  # time heals no refusal
    attest(made, minion)
    assert standing(made) == ("trusted", "L2")


def test_a_boot_that_the_tpm_did_not_sign(made: Fleet, minion: Minion) -> None:
    asked = made.ask("web1")
    forged = signed(asked, {**answer(asked, minion.tpm), "boot": "another-boot"})
    assert made.judge(asked, forged, NOW)["code"] == "qualifying-data"


@pytest.mark.parametrize("forged", [{}, {"boot": "b"}, {"boot": "", "evidence": {}}, {"boot": 1, "evidence": {}}])
def test_an_answer_that_is_none(made: Fleet, minion: Minion, forged: Any) -> None:
    asked = made.ask("web1")
    assert made.judge(asked, signed(asked, forged), NOW)["code"] == "malformed"
    assert standing(made)[0] == "failed"


def test_an_answer_in_anothers_name_lowers_nothing(made: Fleet, minion: Minion) -> None:
    """An answer without the host's signature is ignored, since Salt lets any minion answer in another's name."""
    attest(made, minion)
    before = made.results.record("web1")
    other = type(minion.tpm)()
    for number in range(8):
        asked = made.ask("web1")
        genuine = answer(asked, minion.tpm)
        elsewhere = made.ask("web1")
        forged = [
            None,
            {},
            "VALUE_TRIMMED",
            {**answer(asked, other), "salt": genuine["salt"]},
            {**answer(asked, other), "salt": "00" * 256},
            {key: value for key, value in answer(asked, other).items() if key != "salt"},
            {**genuine, "boot": "another-boot"},
            answer(elsewhere, minion.tpm),  # of another challenge
        ][number]
        with pytest.raises(origin.Unproved, match=r"\[(malformed|ak-unknown|qualifying-data)\]$"):
            made.judge(asked, forged, NOW + 1)
        assert made.results.record("web1") == before and standing(made) == ("trusted", "L2")
        assert made.judge(asked, genuine, NOW)["level"] == 2, "the host's own still counts"
        before = made.results.record("web1")


def test_a_first_software_key_is_the_minions_own(made: Fleet, tmp_path: Path) -> None:
    """The first answer of a new host is refused without the host's Salt signature, and accepted with it."""
    mine, evil = (software_key.load(Layout(root=tmp_path / name)) for name in ("mine", "evil"))
    asked = made.ask("web7")
    genuine = by_software(asked, mine)
    for signature in (None, "00" * 256, genuine["salt"], "zz", 7):
        with pytest.raises(origin.Unproved, match="salt-key"):
            made.judge(asked, {**by_software(asked, evil), "salt": signature}, NOW)
    assert made.results.record("web7") is None and not made._pin("web7").exists()
    assert made.judge(asked, genuine, NOW)["level"] == 1


def test_a_tpm_that_nobody_enrolled_is_the_hosts_word(made: Fleet, fake_tpm: Any) -> None:
    """The claim that a host has a TPM is reported at once only if the host's Salt key signed it.

    Any other minion could make this claim in the host's name.
    """
    asked = made.ask("web9")
    genuine = answer(asked, fake_tpm)
    with pytest.raises(fleet.NotEnrolled, match="not enrolled"):
        made.judge(asked, genuine, NOW)
    with pytest.raises(origin.Unproved, match="not enrolled"):
        made.judge(asked, {**genuine, "salt": "00" * 256}, NOW)


def test_a_host_that_hides_behind_forgeries_goes_stale(made: Fleet, minion: Minion) -> None:
    """A compromised host sends only forged answers: it keeps its state until its deadline, and then is stale."""
    attest(made, minion)
    with pytest.raises(origin.Unproved):
        made.judge(made.ask("web1"), {}, NOW + 7000)
    assert standing(made, NOW + 7200) == ("trusted", "L2")
    assert standing(made, NOW + 7201) == ("stale", "L0")


def test_an_attestation_key_of_another_tpm(made: Fleet, minion: Minion) -> None:
    asked = made.ask("web1")
    record = made.judge(asked, answer(asked, type(minion.tpm)()), NOW)
    assert record["code"] == "ak-unknown"
    assert standing(made)[0] == "failed"
    keys, nonce = [made.signer.jwk], asked.nonce.hex()
    told = ear.check(record["token"], keys, minion="web1", nonce=nonce, boot=BOOT, now=NOW, versions={})
    assert told.level == 0, "the host takes it: it is for its boot"


def test_a_clock_that_was_set_back_also_after_refused_evidence(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    asked = made.ask("web1")
    assert made.judge(asked, signed(asked, {}), NOW)["code"] == "malformed"
    minion.tpm.clock = (1000, 4, 2, 1)
    assert attest(made, minion)["code"] == "clock"


def test_an_expired_certificate_is_due_and_refused(made: Fleet, minion: Minion) -> None:
    assert not made.certificate_due("web1", NOW + 12 * HOUR)
    assert made.certificate_due("web1", NOW + 23.9 * HOUR)
    assert attest(made, minion, NOW + 25 * HOUR)["code"] == "ak-certificate-expired"


def test_a_fleet_that_was_enrolled_in_one_go_is_not_renewed_in_one_go(made: Fleet, monkeypatch: Any) -> None:
    monkeypatch.setattr(made.registrar, "host", lambda minion: {"expires": NOW + 24 * HOUR})
    names = [f"web{number}" for number in range(1000)]
    due = [sum(made.certificate_due(name, NOW + hour * HOUR) for name in names) for hour in (*range(12, 23), 23.01)]
    assert due[0] == 0 and due[-1] == len(names)
    assert max(after - before for before, after in itertools.pairwise(due)) < 150


def test_a_revoked_host_stays_revoked_until_it_is_enrolled_again(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    made.registrar.revoke("web1", "stolen", NOW)
    assert standing(made) == ("revoked", "L0")
    assert attest(made, minion)["code"] == "ak-certificate-revoked"
    later = NOW + 30 * 24 * HOUR
    made.registrar.revoke("web1", "again", later)  # which forgets serials that ran out
    assert standing(made, later)[0] == "revoked"
    assert not made.certificate_due("web1", later), "no renewal may reinstate it"
    enrolled(made.registrar, minion, later)
    assert standing(made, later)[0] != "revoked"


def test_another_tpm_after_a_release_is_not_trusted_by_the_old_ones_result(made: Fleet, minion: Minion) -> None:
    attest(made, minion)
    made.registrar.release("web1", NOW)
    assert standing(made)[0] == "unknown"
    enrolled(made.registrar, Minion("web1", type(minion.tpm)()), NOW)
    assert standing(made)[0] == "enrolled"


def test_a_minion_that_lies_in_its_grains(made: Fleet, minion: Minion) -> None:
    """A host's claims about itself select no policy and no level: answers with such fields are refused."""
    asked = made.ask("web1")
    lies = {"grains": {"tpm": {"class": "discrete"}, "secure_boot": {"enabled": True}, "netspace": {"level": "L5"}}}
    assert made.judge(asked, signed(asked, {**answer(asked, minion.tpm), **lies}), NOW)["code"] == "malformed"
    asked = made.ask("web1")
    wire = answer(asked, minion.tpm)
    wire = signed(asked, {**wire, "evidence": {**wire["evidence"], **lies}})
    assert made.judge(asked, wire, NOW)["code"] == "malformed"
    minion.enrolment = lambda enrolled: {**enrolled, "tpm": {"class": "discrete", "level": "L5"}}
    assert enrolled(made.registrar, minion, NOW)["level"] == 2
    assert attest(made, minion)["level"] == 2
    with pytest.raises(NetspaceError, match="match by the minion's id"):
        groups.parse([{"name": "easy", "match": ["G@role:harmless"]}])


# -- hosts without a TPM ----------------------------------------------------------------


def test_a_host_without_a_tpm_keeps_the_key_that_it_had_at_first(made: Fleet, tmp_path: Path) -> None:
    first, second = (software_key.load(Layout(root=tmp_path / name)) for name in ("one", "two"))
    asked = made.ask("web7")
    assert made.judge(asked, by_software(asked, first), NOW)["level"] == 1
    assert standing(made, minion="web7") == ("degraded", "L1")
    asked = made.ask("web7")
    assert made.judge(asked, by_software(asked, second), NOW)["code"] == "ak-unknown"
    assert standing(made, minion="web7") == ("failed", "L0")
    assert made.release("web7", NOW) is None and standing(made, minion="web7") == ("unknown", "L0")
    with pytest.raises(NetspaceError, match=r"nothing to release$"):  # forget_tpm goes by these words
        made.release("web7", NOW)
    asked = made.ask("web7")
    assert made.judge(asked, by_software(asked, second), NOW)["level"] == 1


def test_a_host_with_a_tpm_can_not_go_back_to_a_software_key(made: Fleet, minion: Minion, tmp_path: Path) -> None:
    asked = made.ask("web1")
    record = made.judge(asked, by_software(asked, software_key.load(Layout(root=tmp_path))), NOW)
    assert record["code"] == "ak-unknown"


def test_a_tpm_that_is_not_enrolled_is_not_judged(made: Fleet, fake_tpm: Any) -> None:
    asked = made.ask("web1")
    with pytest.raises(NetspaceError, match=r"netspace_attestation\.enroll web1"):
        made.judge(asked, answer(asked, fake_tpm), NOW)
    assert standing(made)[0] == "unknown"
