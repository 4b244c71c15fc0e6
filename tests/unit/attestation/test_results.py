"""Results of hosts, as the verifier keeps them: in a store that others can write to, and after lost logs."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.attestation.honest_minion import NOW, Minion, enrolled
from support.attestation.small_fleet import (
    Store,
    answer,
    attest,
    judged,
    standing,
    trusted,
)

from netspace.attestation import ear
from netspace.attestation.fleet import results
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.policy import policy
from netspace.attestation.registrar.host_record import key_of
from netspace.attestation.verifier import appraisal


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
        """Return the level, and the number of boots that were appraised for it."""
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
