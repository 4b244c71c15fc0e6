"""The fleet's verifier: states, deadlines, policies, and answers that are not what they should be."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.attestation import runner_bus
from test_registrar import MASTER, NOW, Minion, enrolled

from netspace.attestation import ear, identity, refusals
from netspace.attestation.evidence import Context
from netspace.attestation.fleet import fleet, groups, host_state, origin, policies, results
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.learning.policy import Wish
from netspace.attestation.minion import attester, software_key
from netspace.attestation.policy import policy
from netspace.attestation.registrar.host_record import key_of
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.verifier import appraisal
from netspace.errors import NetspaceError
from netspace.layout import Layout

BOOT = "0f0e0d0c-boot"
HOUR = 3600.0


class Store:
    def __init__(self) -> None:
        self.data: dict[tuple[str, str], dict[str, Any]] = {}

    def fetch(self, kind: str, key: str) -> dict[str, Any]:
        return self.data.get((kind, key), {})

    def store(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self.data[kind, key] = json.loads(json.dumps(data))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def made(tmp_path: Path, store: Store) -> Fleet:
    registrar = Registrar(tmp_path / "master")
    registrar.ca.init(NOW)
    chosen = groups.parse([{"name": "web", "match": ["web*"], "minimum": "L2", "deadline": 7200}])
    keys = identity.Identities(MASTER, lambda minion: runner_bus.SALT_PUBLIC)
    return Fleet(registrar, MASTER, chosen, store, identities=keys)


@pytest.fixture
def minion(made: Fleet, fake_tpm: Any) -> Minion:
    one = Minion("web1", fake_tpm)
    enrolled(made.registrar, one, NOW)
    return one


def answer(asked: Asked, tpm: Any, boot: str = BOOT, **changes: Any) -> dict[str, Any]:
    values = {"verifier": MASTER, "host": asked.minion, "session": asked.session, "nonce": asked.nonce, **changes}
    context = Context(**values, binding=boot.encode())
    return signed(asked, {"boot": boot, "evidence": tpm.evidence(context).wire()})


def signed(asked: Asked, answer: dict[str, Any]) -> dict[str, Any]:
    """As the minion's Salt key signs it."""
    plain = {key: value for key, value in answer.items() if key != "salt"}
    made: dict[str, Any] = runner_bus.signed("answer", MASTER, asked.minion, asked.wire(), plain)
    return made


def attest(made: Fleet, minion: Minion, now: float = NOW, **changes: Any) -> dict[str, Any]:
    asked = made.ask(minion.name)
    return made.judge(asked, answer(asked, minion.tpm, **changes), now)


def standing(made: Fleet, now: float = NOW, minion: str = "web1") -> tuple[str, str]:
    found = made.standing(minion, now)
    return found.state, found.shown(now)["level"]


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
    """Its keys are the same as before, and its counters begin anew."""
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
    """The attestation key is another one; result, clock and boot continue."""
    attest(made, minion)
    before = minion.tpm.ak_public
    enrolled(made.registrar, minion, NOW + 10)
    assert minion.tpm.ak_public != before and standing(made, NOW + 10) == ("trusted", "L2")
    minion.tpm.clock = (900, 5, 2, 1)
    assert attest(made, minion, NOW + 20)["code"] == "clock"


def test_a_renewal_while_a_host_is_asked_fails_nobody(made: Fleet, minion: Minion) -> None:
    """Two commands at once: one asked by the former key, the other renewed the certificate meanwhile."""
    asked = made.ask("web1")
    reply = answer(asked, minion.tpm)
    enrolled(made.registrar, minion, NOW + 1)
    assert made.judge(asked, reply, NOW + 2)["level"] == 2
    again = made.ask("web1")
    assert again.wire()["period"] != asked.wire()["period"]
    made.registrar.revoke("web1", "stolen", NOW + 3)
    assert made.judge(again, answer(again, minion.tpm), NOW + 4)["code"] == "ak-certificate-revoked"


def test_a_revoked_certificate_counts_no_more_once_renewed(made: Fleet, minion: Minion) -> None:
    """Revoked and enrolled again while it was asked: what the revoked certificate is for is refused."""
    attest(made, minion)
    asked = made.ask("web1")
    reply = answer(asked, minion.tpm)
    made.registrar.revoke("web1", "stolen", NOW + 1)
    enrolled(made.registrar, minion, NOW + 2)
    assert made.judge(asked, reply, NOW + 3)["code"] == "ak-certificate-revoked"
    assert attest(made, minion, NOW + 4)["level"] == 2


def test_a_host_enrolled_before_periods_goes_on(made: Fleet, minion: Minion, store: Store) -> None:
    """Its record in the books and its last result have no period, and it is asked as before."""
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
    """The master's clock was set back: what was judged before must not count for longer."""
    attest(made, minion, NOW + 86400)
    assert standing(made, NOW) == ("stale", "L0") and "clock" in made.standing("web1", NOW).reason
    assert standing(made, NOW + 86400 - 1) == ("trusted", "L2"), "a second is no reason"


def test_what_a_host_measured_moves_no_cursor(made: Fleet, minion: Minion) -> None:
    """Reasons quote what hosts measured, and are shown in terminals."""
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
    """Salt lets any minion answer for any other: what no key of the host signed says nothing of the host."""
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
    """Whoever answers first in the name of a new host does not become that host."""
    mine, evil = (software_key.load(Layout(root=tmp_path / name)) for name in ("mine", "evil"))
    asked = made.ask("web7")
    genuine = by_software(asked, mine)
    for signature in (None, "00" * 256, genuine["salt"], "zz", 7):
        with pytest.raises(origin.Unproved, match="salt-key"):
            made.judge(asked, {**by_software(asked, evil), "salt": signature}, NOW)
    assert made.results.record("web7") is None and not made._pin("web7").exists()
    assert made.judge(asked, genuine, NOW)["level"] == 1


def test_a_tpm_that_nobody_enrolled_is_the_hosts_word(made: Fleet, fake_tpm: Any) -> None:
    """That a host has a TPM is told at once where its Salt key says so, and else may be anybody's word."""
    asked = made.ask("web9")
    genuine = answer(asked, fake_tpm)
    with pytest.raises(fleet.NotEnrolled, match="not enrolled"):
        made.judge(asked, genuine, NOW)
    with pytest.raises(origin.Unproved, match="not enrolled"):
        made.judge(asked, {**genuine, "salt": "00" * 256}, NOW)


def test_a_host_that_hides_behind_forgeries_goes_stale(made: Fleet, minion: Minion) -> None:
    """A host that is taken over and answers rubbish keeps its standing until its deadline, and no longer."""
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


def test_what_others_write_into_the_store_counts_as_nothing(
    made: Fleet, minion: Minion, store: Store, tmp_path: Path
) -> None:
    attest(made, minion)
    (key,) = (key for key in store.data if key[0] == "state")
    good = store.data[key]["jws"]
    record = made.results.record("web1")
    assert record is not None
    other = ear.signer(tmp_path / "other").sign(ear.STATE, {**record, "level": 5})
    for forged in (other, good[:-4] + "AAAA", "", 7, ear.make(made.signer, _told(record), NOW, "")):
        store.data[key] = {"jws": forged}
        assert standing(made) == ("enrolled", "L0")
    enrolled(made.registrar, Minion("web2", type(minion.tpm)()), NOW)
    store.data["state", key_of("web2")] = {"jws": good}
    assert standing(made, minion="web2")[0] == "enrolled", "one host's record is not another's"
    assert made.results.record("web2") is None


def _told(record: dict[str, Any]) -> ear.AppraisalClaims:
    return ear.AppraisalClaims("web1", 5, 2, "ok", "", "", "ab", record["boot"], "web", 1, NOW + 60)


def test_each_change_of_state_is_told_once(made: Fleet, minion: Minion) -> None:
    assert made.results.announced(made.standing("web1", NOW)) == "unknown"
    assert made.results.announced(made.standing("web1", NOW)) is None
    attest(made, minion)
    assert made.results.announced(made.standing("web1", NOW)) == "enrolled"
    assert made.results.announced(made.standing("web1", NOW + 8000)) == "trusted"
    assert made.results.announced(made.standing("web1", NOW + 8000)) is None


def test_a_minion_that_lies_in_its_grains(made: Fleet, minion: Minion) -> None:
    """A host's claims about itself have no place in an answer, and choose no policy."""
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
    with pytest.raises(NetspaceError, match="match by its id"):
        groups.parse([{"name": "easy", "match": ["G@role:harmless"]}])


# -- the boot log -----------------------------------------------------------------------
@pytest.fixture
def logged(minion: Minion) -> bytes:
    """A boot that is recorded, and the TPM has its values."""
    from support.attestation.boot_forge import edited

    log, pcrs = edited("shim-grub", lambda found: None)
    minion.tpm.pcrs.update(pcrs)
    return log


def judged(made: Fleet, minion: Minion, log: Any, asked: Asked | None = None, now: float = NOW) -> dict[str, Any]:
    asked = made.ask("web1") if asked is None else asked
    wire = answer(asked, minion.tpm)
    wire["evidence"]["bootlog"] = base64.b64encode(log).decode() if isinstance(log, bytes) else log
    return made.judge(asked, signed(asked, wire), now)


def trusted(made: Fleet, minion: Minion) -> None:
    """Its maker is known, and its boot is good as it is."""
    record = made.registrar.host("web1")
    assert record is not None
    (path,) = (made.registrar.folder / "hosts").iterdir()
    path.write_text(json.dumps({**record, "level": 3, "reason": ""}))
    made.policies.put("web", {"version": 1, "boot": {"pcrs": {str(n): [minion.tpm.pcrs[n].hex()] for n in range(8)}}})


def test_a_boot_log_travels_once(made: Fleet, minion: Minion, store: Store, logged: bytes) -> None:
    trusted(made, minion)
    assert made.ask("web1").wire()["bootlog"] is None
    assert judged(made, minion, logged)["level"] == 4
    digest = made.ask("web1").wire()["bootlog"]
    assert digest == hashlib.sha256(logged).hexdigest()
    writes = dict(store.data)
    for _ in range(3):
        assert judged(made, minion, {"sha256": digest})["level"] == 4
    assert store.data["log", key_of("web1")] is writes["log", key_of("web1")], "it is not written again"
    assert made.tried("web1", policy.parse({"version": 2}))["new"] == "L3"
    # After the next boot there is another one, and it is the one that counts then.
    other = logged + logged[-64:]
    assert judged(made, minion, other)["code"] == "log-malformed"
    assert made.ask("web1").wire()["bootlog"] == hashlib.sha256(other).hexdigest()


def test_a_good_boot_is_judged_again_after_a_day_or_a_change(
    made: Fleet, minion: Minion, logged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots: list[Any] = []
    whole = appraisal.judged_boot
    monkeypatch.setattr(appraisal, "judged_boot", lambda *given: boots.append(given) or whole(*given))

    def level(now: float = NOW, log: Any = None) -> tuple[int, int]:
        """Return the level, and how many boots were judged for it."""
        boots.clear()
        return judged(made, minion, log or {"sha256": made.ask("web1").log}, now=now)["level"], len(boots)

    trusted(made, minion)
    assert level(log=logged) == (4, 1)
    assert level() == (4, 0)
    assert level(NOW + 20 * 3600) == (4, 0)
    assert level(NOW + 24 * 3600) == (4, 1), "a day after it was judged, not after it was last asked for"
    assert level(NOW + 23 * 3600) == (4, 1), "the clock was set back"
    rules = {"pcrs": {str(n): [minion.tpm.pcrs[n].hex()] for n in range(8)}, "secure_boot": True}
    made.policies.put("web", {"version": 2, "boot": rules})
    assert level()[1] == 1, "by another policy"
    made.policies.put("web", {"version": 3, "boot": {"pcrs": rules["pcrs"]}})
    assert (level(), level()) == ((4, 1), (4, 0))
    minion.tpm.pcrs[4] = bytes(32)
    assert level() == (3, 1), "other values, the same log"


def test_a_log_that_was_lost_is_asked_for_again_and_nothing_is_judged(
    made: Fleet, minion: Minion, store: Store, logged: bytes
) -> None:
    trusted(made, minion)
    judged(made, minion, logged)
    asked = made.ask("web1")
    for lost in ({}, {"log": "x"}, {"log": 7}, {"log": base64.b64encode(b"another").decode()}):
        store.data["log", key_of("web1")] = lost
        with pytest.raises(results.LogLost, match="asked for again"):
            judged(made, minion, {"sha256": asked.log}, asked)
        assert standing(made) == ("trusted", "L4"), "our own loss costs no host its trust"
        assert made.tried("web1", policy.parse({"version": 2}))["code"] == "evidence-none"
    whole = made.ask("web1", whole=True)
    assert whole.wire()["bootlog"] is None
    assert judged(made, minion, logged, whole)["level"] == 4
    assert judged(made, minion, {"sha256": asked.log})["level"] == 4


def test_the_digest_of_a_log_proves_nothing_by_itself(made: Fleet, minion: Minion, logged: bytes) -> None:
    trusted(made, minion)
    for claimed in (hashlib.sha256(logged).hexdigest(), "00" * 32, "xx"):
        assert judged(made, minion, {"sha256": claimed})["code"] == "malformed", "nobody named a log to it"
    judged(made, minion, logged)
    minion.tpm.pcrs[4] = bytes(32)  # another boot, which says that it has the log of the last one
    record = judged(made, minion, {"sha256": made.ask("web1").log})
    assert (record["level"], record["code"]) == (3, "log-mismatch")


# -- hosts without a TPM ----------------------------------------------------------------
def by_software(asked: Asked, key: software_key.Key) -> dict[str, Any]:
    context = Context(MASTER, asked.minion, asked.session, asked.nonce, binding=BOOT.encode())
    return signed(asked, {"boot": BOOT, "evidence": attester.by_key(key, context).wire()})


def test_a_host_without_a_tpm_keeps_the_key_that_it_had_at_first(made: Fleet, tmp_path: Path) -> None:
    first, second = (software_key.load(Layout(root=tmp_path / name)) for name in ("one", "two"))
    asked = made.ask("web7")
    assert made.judge(asked, by_software(asked, first), NOW)["level"] == 1
    assert standing(made, minion="web7") == ("degraded", "L1")
    asked = made.ask("web7")
    assert made.judge(asked, by_software(asked, second), NOW)["code"] == "ak-unknown"
    assert standing(made, minion="web7") == ("failed", "L0")
    assert made.release("web7", NOW) is None and standing(made, minion="web7") == ("unknown", "L0")
    with pytest.raises(NetspaceError, match="nothing to release"):
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


# -- groups and policies ----------------------------------------------------------------
def test_the_first_group_that_matches_counts_and_default_is_the_last() -> None:
    found = groups.parse(
        [{"name": "default", "minimum": "L1"}, {"name": "a", "match": ["web1"]}, {"name": "b", "match": ["web*"]}]
    )
    assert [groups.of(found, name).name for name in ("web1", "web2", "db")] == ["a", "b", "default"]
    assert groups.of(found, "db").minimum == 1
    assert [one.name for one in groups.parse([])] == ["default"]


def test_a_group_is_matched_by_ids_in_salts_words() -> None:
    nodes = {"racks": "L@db1,db2 or N@edge", "edge": ["e*", "or", "E@edge-[0-9]+$"], "loop": "N@loop", "not": "not L@x"}
    found = groups.parse([{"name": "a", "match": ["web*", "N@racks"]}, {"name": "b", "match": ["E@b[12]$"]}], nodes)
    names = ("web1", "db2", "db3", "e7", "edge-1", "edge-x", "b1", "b12")
    assert [groups.of(found, name).name for name in names] == ["a", "a", "default", "a", "a", "a", "b", "default"]
    for term in ("G@os:Debian", "I@role:web", "S@10.0.0.0/8", "N@none", "N@loop", "N@not", "E@(", "X@y"):
        with pytest.raises(NetspaceError, match="match"):
            groups.parse([{"name": "a", "match": [term]}], nodes)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [1],
        [{"name": "A", "match": ["*"]}],
        [{"name": "../x", "match": ["*"]}],
        [{"name": "a"}],
        [{"name": "a", "match": []}],
        [{"name": "a", "match": ["*"], "grain": "x"}],
        [{"name": "a", "match": ["*"], "minimum": "L6"}],
        [{"name": "a", "match": ["*"], "minimum": "L0"}],
        [{"name": "a", "match": ["*"], "pcrs": [24]}],
        [{"name": "a", "match": ["*"], "deadline": 1}],
        [{"name": "a", "match": ["*"]}, {"name": "a", "match": ["*"]}],
        [{"name": "default", "match": ["web*"]}],
    ],
)
def test_groups_that_are_none(data: Any) -> None:
    with pytest.raises(NetspaceError, match=r"netspace\.attestation:groups"):
        groups.parse(data)


def test_a_policys_version_never_falls(made: Fleet, tmp_path: Path) -> None:
    assert made.policies.get("web") is None
    made.policies.put("web", {"version": 3})
    for version in (2, 3):
        with pytest.raises(refusals.PolicyDowngraded):
            made.policies.put("web", {"version": version})
    path = tmp_path / "master/policies/web.jws"
    old = path.read_bytes()
    made.policies.put("web", {"version": 4})
    path.write_bytes(old)  # somebody puts the old one back
    again = Fleet(made.registrar, MASTER, groups.parse([]), Store()).policies
    with pytest.raises(refusals.PolicyDowngraded):
        again.get("web")
    path.unlink()
    with pytest.raises(refusals.PolicyDowngraded):
        again.get("web")
    again.put("web", {"version": 5})
    assert again.get("web") is not None


def test_what_a_policy_allows_for_a_time_ends_by_the_clock_alone(made: Fleet, tmp_path: Path) -> None:
    now = [policy.when("2026-12-23")]
    kept = policies.Policies(tmp_path / "books", made.signer, lambda: now[0])
    rules = {
        "boot": {"kernels": ["ab" * 32], "pcrs": {"2": [], "4": []}},
        "until": {"2026-12-24": {"boot": {"kernels": ["cd" * 32]}}},
    }
    kept.put("web", {"version": 1, **rules})

    def kernels() -> int:
        found = kept.get("web")
        assert found is not None and found.boot is not None and found.boot.kernels is not None
        return len(found.boot.kernels)

    assert kernels() == 2
    now[0] += 86400
    assert kernels() == 1
    assert kept.data("web") == {"version": 1, **rules}, "what was signed stays as it was signed"
    now[0] -= 86400
    again = policies.Policies(tmp_path / "books", made.signer, lambda: now[0])
    assert again.get("web") is not None and again.get("web").changes == now[0] + 86400  # type: ignore[union-attr]


def test_a_policy_that_the_verifier_did_not_sign(made: Fleet, tmp_path: Path) -> None:
    made.policies.put("web", {"version": 1})
    made.policies.put("db", {"version": 1})
    path = tmp_path / "master/policies/web.jws"
    other = ear.signer(tmp_path / "other").sign(ear.POLICY, {"group": "web", "policy": {"version": 2}})
    for forged in (other.encode(), path.with_name("db.jws").read_bytes(), b"{}", b""):
        path.write_bytes(forged)
        with pytest.raises(refusals.PolicyForged):
            made.policies.data("web")


def learn(made: Fleet, minion: Minion) -> tuple[Any, dict[str, Any]]:
    attest(made, minion)
    group, found = made.learn(["web1"], Wish())
    assert group == "web"
    return found.before, found.after


def test_learning_shows_a_difference_and_keeps_what_was_good(made: Fleet, minion: Minion) -> None:
    before, after = learn(made, minion)
    assert before is None and after["version"] == 1 and set(after["boot"]["pcrs"]) == {str(pcr) for pcr in range(8)}
    assert any(line.startswith("+") and minion.tpm.pcrs[0].hex() in line for line in policies.diff(before, after))
    policy.parse(after)
    made.policies.put("web", after)
    before, same = learn(made, minion)
    assert before == same and policies.diff(before, same) == []
    old = minion.tpm.pcrs[4]
    minion.tpm.pcrs[4] = bytes([7]) * 32
    before, after = learn(made, minion)
    assert after["version"] == 2 and after["boot"]["pcrs"]["4"] == [old.hex(), "07" * 32]


def test_nothing_is_learned_from_what_was_refused_or_of_two_groups(made: Fleet, minion: Minion, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match="never attested: nothing is learned"):
        made.learn(["web1"], Wish())
    attest(made, minion, session="other")
    with pytest.raises(NetspaceError, match="nothing is learned"):
        made.learn(["web1"], Wish())
    with pytest.raises(NetspaceError, match="default, web: learn from those of one"):
        made.learn(["web1", "db1"], Wish())
    asked = made.ask("web7")
    made.judge(asked, by_software(asked, software_key.load(Layout(root=tmp_path / "soft"))), NOW)
    with pytest.raises(NetspaceError, match="has no TPM"):
        made.learn(["web7"], Wish())
    attest(made, minion)
    with pytest.raises(NetspaceError, match="list was not brought"):
        made.learn(["web1"], Wish(ima=True))
    many = [f"web{number}" for number in range(fleet.MAX_LISTED + 1)]
    with pytest.raises(NetspaceError, match="32 at a time"):
        made.learn(many, Wish(ima=True))


def test_nothing_is_learned_where_the_log_was_lost(made: Fleet, minion: Minion, store: Store, logged: bytes) -> None:
    judged(made, minion, logged)
    assert made.learn(["web1"], Wish())[1].after["boot"]["secure_boot"] is True
    store.data["log", key_of("web1")] = {}
    with pytest.raises(NetspaceError, match="not kept any more: attest it"):
        made.learn(["web1"], Wish())


def test_systemds_log_is_kept_beside_the_firmwares_and_written_where_it_changed(
    made: Fleet, minion: Minion, store: Store, logged: bytes
) -> None:
    def answered(systemd: bytes, log: Any) -> None:
        asked = made.ask("web1")
        wire = answer(asked, minion.tpm)
        wire["evidence"]["bootlog"] = base64.b64encode(log).decode() if isinstance(log, bytes) else log
        wire["evidence"]["systemdlog"] = base64.b64encode(systemd).decode()
        made.judge(asked, wire, NOW)

    key = "log", key_of("web1")
    answered(b"one", logged)
    known = {"sha256": hashlib.sha256(logged).hexdigest()}
    kept = store.data[key]
    answered(b"one", known)
    assert store.data[key] is kept, "nothing is new: nothing is written"
    answered(b"two", known)
    assert base64.b64decode(store.data[key]["systemd"]) == b"two" and store.data[key]["log"] == kept["log"]
    record = made.results.record("web1")
    assert record is not None and record["systemd"] == hashlib.sha256(b"two").hexdigest()


def test_a_policy_is_tried_on_the_last_evidence(made: Fleet, minion: Minion, store: Store) -> None:
    proposed = policy.parse({"version": 1, "boot": {"pcrs": {str(pcr): ["00" * 32] for pcr in range(8)}}})
    assert made.tried("web1", proposed)["new"] is None
    attest(made, minion)
    assert made.tried("web1", proposed) == {
        "old": "L2",
        "new": "L2",
        "code": "ek-untrusted",
        "reason": "the TPM has no endorsement certificate",
    }
    store.data["state", key_of("web1")] = {}
    assert made.tried("web1", proposed)["code"] == "evidence-none"


def test_a_policy_that_would_cost_a_host_its_level_says_so(made: Fleet, minion: Minion) -> None:
    """The same evidence with a TPM that is trusted: one policy takes its boot, another doesn't."""
    from support.attestation.boot_forge import edited

    boot, pcrs = edited("shim-grub", lambda found: None)
    minion.tpm.pcrs.update(pcrs)
    record = made.registrar.host("web1")
    assert record is not None
    (path,) = (made.registrar.folder / "hosts").iterdir()
    path.write_text(json.dumps({**record, "level": 3, "reason": ""}))
    good = {"version": 1, "boot": {"pcrs": {str(pcr): [minion.tpm.pcrs[pcr].hex()] for pcr in range(8)}}}
    made.policies.put("web", good)
    asked = made.ask("web1")
    wire = answer(asked, minion.tpm)
    wire["evidence"]["bootlog"] = base64.b64encode(boot).decode()
    assert made.judge(asked, wire, NOW)["level"] == 4
    worse = {"version": 2, "boot": {"pcrs": {**good["boot"]["pcrs"], "4": ["00" * 32]}}}
    tried = made.tried("web1", policy.parse(worse))
    assert (tried["old"], tried["new"], tried["code"]) == ("L4", "L3", "pcr-value")
    assert made.tried("web1", policy.parse({**good, "version": 2}))["new"] == "L4"
    assert made.policies.get("web").version == 1, "trying puts nothing in force"
