"""The signed attestation result (EAR): a host accepts a good one, and refuses every forgery."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace import jose
from netspace.attestation import ear, refusals
from netspace.attestation.ear import AppraisalClaims, Signer
from netspace.errors import NetspaceError

NOW = 1_700_000_000.0
NONCE = "ab" * 32
TOLD = AppraisalClaims("web1", 3, 2, "policy-none", "why", "how", NONCE, "boot-1", "web", 4, NOW + 7200)
AT_HOST: dict[str, Any] = {
    "minion": "web1",
    "nonce": NONCE,
    "boot": "boot-1",
    "now": NOW + 1,
    "versions": {"web": 4, "db": 9},
}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return ear.signer(tmp_path_factory.mktemp("verifier"))


def check(token: Any, signer: Signer, **changes: Any) -> AppraisalClaims:
    return ear.check(token, [signer.jwk], **{**AT_HOST, **changes})


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def test_a_result_is_taken_by_the_host_that_it_is_for(signer: Signer) -> None:
    token = ear.make(signer, TOLD, NOW, "1")
    assert check(token, signer) == TOLD
    found = claims(token)
    assert found["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert found["exp"] - found["iat"] == 600
    host = found["submods"]["host"]
    assert (host["ear_status"], host["ear_appraisal_policy_ids"]) == ("affirming", ["web:4"])
    assert host["ear_trustworthiness_vector"] == {"instance-identity": 2, "hardware": 2}


@pytest.mark.parametrize(
    ("level", "minimum", "status"),
    [
        (0, 1, "contraindicated"),
        (1, 1, "warning"),  # a software key is a warning at best
        (2, 3, "warning"),
        (2, 2, "affirming"),
        (5, 4, "affirming"),
    ],
)
def test_what_a_level_means_to_others(level: int, minimum: int, status: str) -> None:
    assert dataclasses.replace(TOLD, level=level, minimum=minimum).status == status


def test_another_library_reads_it(signer: Signer) -> None:
    jwt = pytest.importorskip("jwt")
    token = ear.make(signer, TOLD, NOW, "1")
    (key,) = jwt.PyJWKSet.from_dict(ear.jwks([signer.jwk])).keys
    options = {"verify_exp": False, "verify_iat": False}
    found = jwt.decode(token, key.key, algorithms=["ES256"], options=options)
    assert found["sub"] == "web1"
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": jose.thumbprint(signer.jwk), "typ": "JWT"}


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """The thumbprint of the key in RFC 7515, A.3, is computed by RFC 7638's rule, as other libraries do."""
    key = {
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }
    assert jose.thumbprint(ear.parse_jwk(key)) == "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"


def test_a_result_that_is_replayed_on_another_minion(signer: Signer) -> None:
    with pytest.raises(refusals.ResultElsewhere):
        check(ear.make(signer, TOLD, NOW, "1"), signer, minion="web2")


def test_a_result_of_another_challenge(signer: Signer) -> None:
    token = ear.make(signer, TOLD, NOW, "1")
    for nonce in ("cd" * 32, ""):
        with pytest.raises(refusals.ResultReplayed):
            check(token, signer, nonce=nonce)
    with pytest.raises(refusals.ResultReplayed):
        check(ear.make(signer, dataclasses.replace(TOLD, nonce=""), NOW, "1"), signer, nonce="")


def test_a_result_of_another_boot(signer: Signer) -> None:
    token = ear.make(signer, TOLD, NOW, "1")
    for boot in ("boot-2", ""):
        with pytest.raises(refusals.ResultOtherBoot):
            check(token, signer, boot=boot)
    with pytest.raises(refusals.ResultOtherBoot):
        check(ear.make(signer, dataclasses.replace(TOLD, boot=""), NOW, "1"), signer, boot="")


@pytest.mark.parametrize("now", [NOW + 601, NOW - 301, NOW + 8000])
def test_an_expired_result_and_one_from_the_future(signer: Signer, now: float) -> None:
    with pytest.raises(refusals.ResultExpired):
        check(ear.make(signer, TOLD, NOW, "1"), signer, now=now)


def test_a_result_whose_deadline_is_over(signer: Signer) -> None:
    with pytest.raises(refusals.ResultExpired):
        check(ear.make(signer, dataclasses.replace(TOLD, deadline=NOW), NOW, "1"), signer)


def test_a_result_by_a_lower_version_of_the_policy(signer: Signer) -> None:
    with pytest.raises(refusals.PolicyDowngraded):
        check(ear.make(signer, dataclasses.replace(TOLD, version=3), NOW, "1"), signer)
    assert check(ear.make(signer, dataclasses.replace(TOLD, version=5), NOW, "1"), signer).version == 5


def test_a_result_by_another_key(signer: Signer, tmp_path: Path) -> None:
    other = ear.signer(tmp_path)
    with pytest.raises(refusals.ResultForged, match="not trusted"):
        check(ear.make(other, TOLD, NOW, "1"), signer)
    # ... and with the pinned key's name on it.
    head, body, _ = ear.make(signer, TOLD, NOW, "1").split(".")
    signature = ear.make(other, TOLD, NOW, "1").split(".")[2]
    with pytest.raises(refusals.ResultForged, match="did not sign"):
        check(f"{head}.{body}.{signature}", signer)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "JWT"},
        {"alg": "None", "typ": "JWT", "kid": True},
        {"alg": "HS256", "typ": "JWT", "kid": True},
        {"alg": "ES256", "typ": "JWT", "kid": True, "jwk": {}},
        {"alg": "ES256", "typ": "JWT", "kid": True, "crit": ["exp"]},
        {"alg": "ES256", "typ": "netspace-state", "kid": True},
        {"alg": "ES256", "typ": "JWT"},
    ],
)
def test_alg_none_and_other_headers(signer: Signer, header: dict[str, Any]) -> None:
    if "kid" in header:
        header = {**header, "kid": jose.thumbprint(signer.jwk)}
    _, body, signature = ear.make(signer, TOLD, NOW, "1").split(".")
    signed = f"{part(header)}.{body}"
    # Also where the very key signed it: nobody else's reading of such a header may count.
    r, s = utils.decode_dss_signature(signer.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    genuine = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=").decode()
    for one in ("", signature, genuine):
        with pytest.raises(refusals.ResultForged):
            check(f"{signed}.{one}", signer)


def test_a_signed_token_of_another_kind_is_no_result(signer: Signer) -> None:
    with pytest.raises(refusals.ResultForged):
        check(signer.sign(ear.STATE, claims(ear.make(signer, TOLD, NOW, "1"))), signer)


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found.update(more=1),
        lambda found: found.pop("exp"),
        lambda found: found.update(exp=found["iat"] + 601),
        lambda found: found.update(exp=float(found["exp"])),
        lambda found: found.update(eat_profile="tag:ietf.org,2026:rats/ear#03"),
        lambda found: found["submods"]["host"].update(netspace_level=6),
        lambda found: found["submods"]["host"].update(netspace_level=True),
        lambda found: found["submods"]["host"].update(ear_status="affirming", netspace_level=0),
        lambda found: found["submods"]["host"].pop("netspace_boot"),
        lambda found: found.update(submods={}),
        lambda found: found.update(sub="web1\ud800"),
        lambda found: found["submods"]["host"].update(netspace_reason="\udfff"),
    ],
)
def test_signed_claims_that_are_none(signer: Signer, edit: Callable[[dict[str, Any]], Any]) -> None:
    found = claims(ear.make(signer, TOLD, NOW, "1"))
    edit(found)
    with pytest.raises(refusals.Malformed):
        check(signer.sign(ear.RESULT, found), signer)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_token_with_any_character_changed_is_refused(signer: Signer, data: st.DataObject) -> None:
    token = ear.make(signer, TOLD, NOW, "1")
    at = data.draw(st.integers(0, len(token) - 1))
    to = data.draw(st.characters(codec="utf-8").filter(lambda one: one != token[at]))
    with pytest.raises(refusals.Refused):
        check(token[:at] + to + token[at + 1 :], signer)


@given(st.one_of(st.text(), st.binary(), st.none(), st.lists(st.text()), st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*")))
def test_anything_else_is_refused(signer: Signer, token: Any) -> None:
    with pytest.raises(refusals.Refused):
        check(token, signer)


def test_the_key_is_made_once_and_is_its_users_alone(tmp_path: Path) -> None:
    first = ear.signer(tmp_path)
    assert ear.signer(tmp_path).jwk == first.jwk
    path = tmp_path / "verifier.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(NetspaceError, match="chmod go="):
        ear.signer(tmp_path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(NetspaceError, match="no key that can be used"):
        ear.signer(tmp_path)


@pytest.mark.parametrize("key", [None, {}, {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}, {"kty": "RSA"}])
def test_a_key_that_is_none(key: Any) -> None:
    with pytest.raises(refusals.Malformed):
        ear.parse_jwk(key)
