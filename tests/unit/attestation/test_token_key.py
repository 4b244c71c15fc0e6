"""The key of environments' tokens: a host proves it to the fleet's verifier, whose result names it for others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.attestation.honest_minion import MASTER, NOW, Minion
from support.attestation.small_fleet import BOOT, attest, signed

from netspace import jose
from netspace.attestation import ear, host_appraisal, result, token_key
from netspace.attestation.evidence import Context
from netspace.attestation.fleet import fleet, origin
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.minion import attester, master_result, settings, software_key
from netspace.layout import Layout
from netspace.spec.types import Attestation

KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def thumbprint(key: ec.EllipticCurvePrivateKey) -> str:
    return jose.thumbprint(jose.jwk(key.public_key()))


def context(asked: Asked, key: ec.EllipticCurvePrivateKey | None = KEY, boot: str = BOOT, **changed: Any) -> Context:
    named = "" if key is None else thumbprint(key)
    found = Context(MASTER, asked.minion, asked.session, asked.nonce, binding=boot.encode(), key=named)
    return dataclasses.replace(found, **changed)


def answer(asked: Asked, tpm: Any, boot: str = BOOT, key: ec.EllipticCurvePrivateKey = KEY) -> dict[str, Any]:
    """Return an honest answer that shows a key."""
    bound = context(asked, key, boot)
    evidence = tpm.evidence(bound).wire()
    return signed(asked, {"boot": boot, "evidence": evidence, token_key.FIELD: token_key.shown(key, bound)})


def word(record: dict[str, Any], made: Fleet, now: float = NOW) -> host_appraisal.Appraised:
    claims = jose.unchecked(record["token"])[1]["submods"]["host"]
    found = host_appraisal.check(claims["netspace_appraisal"], [made.signer.jwk], now)
    assert claims["netspace_token_key"] == jose.thumbprint(found.key)
    return found


def test_shown_key_is_in_the_result_and_its_word(made: Fleet, minion: Minion) -> None:
    asked = made.ask("web1")
    record = made.judge(asked, answer(asked, minion.tpm), NOW)
    assert (record["level"], record["token_key"]) == (2, [thumbprint(KEY), BOOT])
    found = word(record, made)
    assert (found.minion, found.level, found.boot, found.group) == ("web1", 2, BOOT, "web")
    assert dict(found.key) == jose.jwk(KEY.public_key()) and found.expires == int(NOW + 7200)
    later = attest(made, minion, NOW + 10)
    assert "netspace_appraisal" not in jose.unchecked(later["token"])[1]["submods"]["host"], "it showed none this time"
    assert later["token_key"] == [thumbprint(KEY), BOOT], "the boot of a key is not forgotten"


def changed(reply: dict[str, Any], asked: Asked, **more: Any) -> dict[str, Any]:
    """Return an answer with changed members, signed again by the host's Salt key, as root of the host can do."""
    return signed(asked, {name: value for name, value in {**reply, **more}.items() if value is not None})


def _shown(asked: Asked, key: ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    return token_key.shown(key, context(asked, key, **more))


def _quoted(asked: Asked, tpm: Any, key: ec.EllipticCurvePrivateKey, shown: dict[str, Any]) -> dict[str, Any]:
    evidence = tpm.evidence(context(asked, key)).wire()
    return signed(asked, {"boot": BOOT, "evidence": evidence, token_key.FIELD: shown})


def _as(asked: Asked, tpm: Any, **shown: Any) -> dict[str, Any]:
    honest = _shown(asked, KEY)
    return _quoted(asked, tpm, KEY, {**honest, **shown})


# What root of the host web1 shows -> the answer, and the code of its refusal.
FORGERIES: dict[str, tuple[Callable[[Asked, Any], dict[str, Any]], str]] = {
    "another host's key, signed by its own": (
        lambda asked, tpm: _quoted(asked, tpm, OTHER, {**_shown(asked, KEY), "jwk": jose.jwk(OTHER.public_key())}),
        "token-key-proof",
    ),
    "another host's key with that host's proof": (
        lambda asked, tpm: _quoted(asked, tpm, OTHER, _shown(asked, OTHER, host="web2")),
        "token-key-proof",
    ),
    "a proof for another master": (
        lambda asked, tpm: _quoted(asked, tpm, KEY, _shown(asked, KEY, verifier="cd" * 32)),
        "token-key-proof",
    ),
    "a proof for an earlier challenge": (
        lambda asked, tpm: _quoted(asked, tpm, KEY, _shown(asked, KEY, nonce=bytes(32))),
        "token-key-proof",
    ),
    "a proof for another session": (
        lambda asked, tpm: _quoted(asked, tpm, KEY, _shown(asked, KEY, session="x")),
        "token-key-proof",
    ),
    "a proof of another boot": (
        lambda asked, tpm: _quoted(asked, tpm, KEY, _shown(asked, KEY, boot="boot-0")),
        "token-key-proof",
    ),
    "a key of an earlier boot": (lambda asked, tpm: answer(asked, tpm, "boot-2"), "token-key-boot"),
    "a key that the quote does not name": (
        lambda asked, tpm: changed(answer(asked, tpm), asked, token_key=_shown(asked, OTHER)),
        "qualifying-data",
    ),
    "a key beside a quote without one": (
        lambda asked, tpm: signed(
            asked,
            {"boot": BOOT, "evidence": tpm.evidence(context(asked, None)).wire(), token_key.FIELD: _shown(asked, KEY)},
        ),
        "qualifying-data",
    ),
    "no key beside a quote with one": (
        lambda asked, tpm: changed(answer(asked, tpm), asked, token_key=None),
        "qualifying-data",
    ),
    "a key in a quote of another boot": (
        lambda asked, tpm: changed(answer(asked, tpm, "boot-2", OTHER), asked, boot=BOOT),
        "qualifying-data",
    ),
    "a replayed quote": (
        lambda asked, tpm: signed(asked, answer(dataclasses.replace(asked, nonce=bytes(32)), tpm)),
        "qualifying-data",
    ),
    "a quote of another host": (
        lambda asked, tpm: signed(asked, answer(dataclasses.replace(asked, minion="web2"), tpm)),
        "qualifying-data",
    ),
    "a quote by another TPM's key": (
        lambda asked, tpm: changed(
            answer(asked, tpm), asked, evidence={**answer(asked, tpm)["evidence"], "key": "AAAA"}
        ),
        "ak-unknown",
    ),
    "a certificate of the key in place of a quote": (
        lambda asked, tpm: signed(
            asked,
            {
                "boot": BOOT,
                "evidence": tpm.evidence(context(asked), kind=0x8017).wire(),
                token_key.FIELD: _shown(asked, KEY),
            },
        ),
        "type",
    ),
    "a software key's word": (
        lambda asked, tpm: signed(
            asked,
            {
                "boot": BOOT,
                "evidence": attester.by_key(SOFTWARE, context(asked)).wire(),
                token_key.FIELD: _shown(asked, KEY),
            },
        ),
        "ak-unknown",
    ),
    "a key of another form": (lambda asked, tpm: _as(asked, tpm, jwk="x"), "malformed"),
    "a key on another curve": (
        lambda asked, tpm: _as(asked, tpm, jwk={**jose.jwk(KEY.public_key()), "crv": "P-384"}),
        "malformed",
    ),
    "a point that is on no curve": (
        lambda asked, tpm: _as(asked, tpm, jwk={**jose.jwk(KEY.public_key()), "x": "A" * 43}),
        "malformed",
    ),
    "a proof that is too short": (lambda asked, tpm: _as(asked, tpm, sig="AAAA"), "malformed"),
    "a proof that is no text": (lambda asked, tpm: _as(asked, tpm, sig=7), "malformed"),
    "a proof that is no base64url": (lambda asked, tpm: _as(asked, tpm, sig="*" * 86), "malformed"),
    "a further member": (lambda asked, tpm: _as(asked, tpm, admin=True), "malformed"),
    "two keys": (
        lambda asked, tpm: changed(answer(asked, tpm), asked, token_key=[_shown(asked, KEY)] * 2),
        "malformed",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def software(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SOFTWARE
    SOFTWARE = software_key.load(Layout(root=tmp_path_factory.mktemp("software")))


SOFTWARE: software_key.Key


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_key_of_a_host_gives_no_level(made: Fleet, minion: Minion, name: str) -> None:
    asked = made.ask("web1")
    assert made.judge(asked, answer(asked, minion.tpm), NOW)["level"] == 2
    forge, code = FORGERIES[name]
    asked = made.ask("web1")
    record = made.judge(asked, forge(asked, minion.tpm), NOW + 1)
    assert (record["level"], record["code"]) == (0, code)
    assert "netspace_appraisal" not in record["token"] and record["token_key"] == [thumbprint(KEY), BOOT]


def test_key_of_an_earlier_boot_stays_refused(made: Fleet, minion: Minion) -> None:
    for boot, code in ((BOOT, "ek-untrusted"), ("boot-2", "token-key-boot"), ("boot-2", "token-key-boot")):
        asked = made.ask("web1")
        assert made.judge(asked, answer(asked, minion.tpm, boot), NOW)["code"] == code
    asked = made.ask("web1")
    assert made.judge(asked, answer(asked, minion.tpm, "boot-2", OTHER), NOW)["level"] == 2, "a new key"


def test_bus_can_not_spoil_a_hosts_key(made: Fleet, minion: Minion) -> None:
    """Another minion changes the proof, which the quote doesn't cover: nothing is judged, the last result stays."""
    asked = made.ask("web1")
    reply = _as(asked, minion.tpm, sig="A" * 86)
    reply["salt"] = "00" * 256
    with pytest.raises(origin.Unproved, match="token-key-proof"):
        made.judge(asked, reply, NOW)
    assert made.judge(asked, answer(asked, minion.tpm), NOW)["level"] == 2


@pytest.mark.parametrize(
    ("module", "name", "forgeries"),
    [
        (token_key, "check", ["another host's key, signed by its own", "a proof for an earlier challenge"]),
        (fleet, "_check_new", ["a key of an earlier boot"]),
    ],
    ids=["proof", "boot"],
)
def test_check_of_the_key_that_is_taken_out_is_missed(
    made: Fleet, minion: Minion, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, forgeries: list[str]
) -> None:
    asked = made.ask("web1")
    made.judge(asked, answer(asked, minion.tpm), NOW)
    monkeypatch.setattr(module, name, lambda *given: None)
    for one in forgeries:
        asked = made.ask("web1")
        assert made.judge(asked, FORGERIES[one][0](asked, minion.tpm), NOW + 1)["level"] == 2


def test_quote_that_does_not_cover_the_key_is_missed(
    made: Fleet, minion: Minion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the test: if the quote's qualifying data lacked the key, another key would be accepted beside it."""
    whole = Context.qualifying
    monkeypatch.setattr(Context, "qualifying", lambda self: whole(dataclasses.replace(self, key="")))
    asked = made.ask("web1")
    forged = changed(answer(asked, minion.tpm), asked, token_key=_shown(asked, OTHER))
    record = made.judge(asked, forged, NOW)
    assert record["level"] == 2 and record["token_key"][0] == thumbprint(OTHER)


def test_evidence_without_a_key_is_as_before() -> None:
    """Masters and minions of earlier versions know no key: without one, the signed bytes are the same."""
    plain = Context("v", "h", "s", bytes(32), binding=b"b")
    assert plain.qualifying().hex() == "34b84befccafb123e2ecc5759cf1103cdcfd5825570b328b10a9c3eb84815c5e"
    assert plain.qualifying() != dataclasses.replace(plain, key="k").qualifying()


# -- on the host ----------------------------------------------------------------------------
def test_host_shows_its_key_and_stores_the_word_on_it(made: Fleet, tmp_path: Path) -> None:
    layout, now = Layout(root=tmp_path / "host"), time.time()
    path = layout.root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text(BOOT)
    pinned = Attestation(verifier="master", verifier_keys=(jose.thumbprint(made.signer.jwk),))
    chosen = settings.of(pinned)
    asked = made.ask("web1")
    reply = master_result.answer(layout, chosen, "web1", MASTER, asked.wire() | {"salt": True}, None, KEY)
    record = made.judge(asked, signed(asked, {k: v for k, v in reply.items() if k != "salt"}), now)
    assert (record["level"], record["code"]) == (1, "software-key")
    stored = master_result.accept(layout, chosen, "web1", record["token"], made.signer.jwk)
    assert stored == result.load(layout) and stored.token_key == thumbprint(KEY)
    found = host_appraisal.check(stored.appraisal, [made.signer.jwk], now)
    assert (found.level, found.minion, found.boot) == (1, "web1", BOOT), "a software key is L1, whoever says so"


def test_result_of_an_earlier_version_has_no_word(tmp_path: Path) -> None:
    from netspace import files

    layout = Layout(root=tmp_path)
    before = result.Result(3, "master", "", "", "b", 1.0, 2.0, {}, "", {}, token_key="k", appraisal="w")
    result.save(layout, before)
    record = files.read_json(result.path(layout))
    assert record is not None and result.load(layout) == before
    files.write_json(result.path(layout), {k: v for k, v in record.items() if k not in ("token_key", "appraisal")})
    assert result.load(layout) == dataclasses.replace(before, token_key="", appraisal="")


def test_word_in_a_result_of_another_type_is_refused(made: Fleet) -> None:
    told = ear.AppraisalClaims("web1", 3, 2, "", "", "", "n", "b", "web", 1, NOW + 60, {}, "k", "w")
    good = ear.make(made.signer, told, NOW, "1")
    found = ear.check(good, [made.signer.jwk], minion="web1", nonce="n", boot="b", now=NOW, versions={})
    assert (found.token_key, found.appraisal) == ("k", "w")
    claims = jose.unchecked(good)[1]
    claims["submods"]["host"]["netspace_appraisal"] = 7
    with pytest.raises(ear.Malformed):
        ear.check(
            made.signer.sign(ear.RESULT, claims),
            [made.signer.jwk],
            minion="web1",
            nonce="n",
            boot="b",
            now=NOW,
            versions={},
        )
