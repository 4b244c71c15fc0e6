"""Policies are parsed strictly: a typing error must never widen a policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import Pattern, PolicyError

DIGEST = "ab" * 32


def test_a_whole_policy() -> None:
    found = policy.parse(
        {
            "version": 3,
            "boot": {
                "secure_boot": True,
                "dbx": [DIGEST],
                "signers": [],
                "sbat": {"shim": 4},
                "mok": [DIGEST],
                "applications": [DIGEST],
                "started_by": {DIGEST: ["firmware", DIGEST]},
                "grub_commands": [DIGEST],
                "kernels": [DIGEST],
                "initrds": [DIGEST],
                "files": [DIGEST],
                "command_lines": ["root=* ro"],
                "pcrs": {0: [DIGEST], "1": [DIGEST]},
                "unchecked": [5],
            },
            "ima": {
                "files": {"/bin/true": [f"sha256:{DIGEST}"]},
                "exclude": ["/tmp/*"],
                "entries": [DIGEST],
                "violations": "ignore",
            },
        }
    )
    assert found.version == 3 and found.boot and found.boot.pcrs.keys() == {0, 1} and found.boot.signers == frozenset()
    assert found.ima and found.ima.lines == {ima.line(b"/bin/true", b"sha256:\0" + bytes.fromhex(DIGEST))}
    assert found.ima.ignore_violations and not found.ima.keys


def test_a_line_is_listed_only_as_a_whole() -> None:
    digest = b"sha256:\0" + bytes.fromhex(DIGEST)
    rules = policy.parse({"version": 1, "ima": {"files": {"/bin/true": [f"sha256:{DIGEST}"]}}}).ima
    assert rules is not None
    data = ima.line(b"/bin/true", digest)
    listed = [ima.Entry(b"", b"ima-ng", data), ima.Entry(b"", b"ima-sig", data + bytes(4))]
    forms = ((b"ima-sig", data + b"\1\0\0\0"), (b"ima-ng", data + bytes(4)), (b"mine", data))
    others = [ima.Entry(b"", template, other) for template, other in forms]
    others.append(ima.Entry(ima.VIOLATION, b"ima-ng", data))  # its data is not what was measured
    assert list(rules.unlisted([*listed, *others], 7)) == list(enumerate(others, 7 + len(listed)))


def test_a_fingerprint_is_of_the_content() -> None:
    first = policy.parse({"version": 1, "boot": {"dbx": [DIGEST], "secure_boot": True}})
    assert first.fingerprint == policy.parse({"boot": {"secure_boot": True, "dbx": [DIGEST]}, "version": 1}).fingerprint
    assert first.fingerprint != policy.parse({"version": 2, "boot": {"secure_boot": True, "dbx": [DIGEST]}}).fingerprint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "policy: expected a mapping"),
        ({}, "policy:version"),
        ({"version": 0}, "policy:version"),
        ({"version": True}, "policy:version"),
        ({"version": 1, "bot": {}}, "policy:bot: unknown"),
        ({"version": 1, "boot": []}, "policy:boot: expected a mapping"),
        ({"version": 1, "boot": {"secureboot": True}}, "policy:boot:secureboot: unknown"),
        ({"version": 1, "boot": {"secure_boot": "yes"}}, "policy:boot:secure_boot"),
        ({"version": 1, "boot": {"dbx": DIGEST}}, "policy:boot:dbx: expected a list"),
        ({"version": 1, "boot": {"dbx": ["ab"]}}, "policy:boot:dbx: 'ab'"),
        ({"version": 1, "boot": {"dbx": ["zz" * 32]}}, "policy:boot:dbx"),
        ({"version": 1, "boot": {"dbx": ["ab " * 20 + "abab"]}}, "expected 32 bytes"),
        ({"version": 1, "boot": {"initrds": [DIGEST]}}, "boot: kernels is missing"),
        ({"version": 1, "boot": {"grub_commands": [DIGEST]}}, "boot: command_lines is missing"),
        ({"version": 1, "boot": {"started_by": {}}}, "boot: applications is missing"),
        ({"version": 1, "boot": {"applications": [], "started_by": []}}, "policy:boot:started_by"),
        ({"version": 1, "boot": {"applications": [], "started_by": {"x": []}}}, "policy:boot:started_by"),
        ({"version": 1, "boot": {"applications": [], "started_by": {DIGEST: "firmware"}}}, "policy:boot:started_by"),
        ({"version": 1, "boot": {"applications": [], "started_by": {DIGEST: ["shim"]}}}, "policy:boot:started_by"),
        ({"version": 1, "boot": {"sbat": []}}, "policy:boot:sbat"),
        ({"version": 1, "boot": {"sbat": {"shim": "4"}}}, "policy:boot:sbat:shim"),
        ({"version": 1, "boot": {"sbat": {"shim": 0}}}, "policy:boot:sbat:shim"),
        ({"version": 1, "boot": {"sbat": {"": 1}}}, "policy:boot:sbat"),
        ({"version": 1, "boot": {"mok": "x"}}, "policy:boot:mok: expected a list"),
        ({"version": 1, "boot": {"command_lines": [""]}}, "policy:boot:command_lines"),
        ({"version": 1, "boot": {"command_lines": ["x"] * 257}}, "at most 256"),
        ({"version": 1, "boot": {"pcrs": []}}, "policy:boot:pcrs"),
        ({"version": 1, "boot": {"pcrs": {24: []}}}, "policy:boot:pcrs"),
        ({"version": 1, "boot": {"pcrs": {True: []}}}, "policy:boot:pcrs"),
        ({"version": 1, "boot": {"pcrs": {1: [], "1": []}}}, "given twice"),
        ({"version": 1, "boot": {"unchecked": ["01"]}}, "policy:boot:unchecked"),
        ({"version": 1, "ima": {"file": {}}}, "policy:ima:file: unknown"),
        ({"version": 1, "ima": {"files": []}}, "policy:ima:files"),
        ({"version": 1, "ima": {"files": {"": []}}}, "policy:ima:files"),
        ({"version": 1, "ima": {"files": {"/x": [DIGEST]}}}, "expected sha256:"),
        ({"version": 1, "ima": {"files": {"/x": ["sha1:" + "ab" * 20]}}}, "expected sha256:"),
        ({"version": 1, "ima": {"files": {"\ud800": []}}}, "policy:ima:files"),
        ({"version": 1, "ima": {"exclude": ["/*"]}}, "exclude every file"),
        ({"version": 1, "ima": {"exclude": ["*"]}}, "exclude every file"),
        ({"version": 1, "ima": {"violations": "allow"}}, "policy:ima:violations"),
        ({"version": 1, "ima": {"keys": ["x"]}}, "policy:ima:keys"),
        ({"version": 1, "ima": {"keys": [1]}}, "policy:ima:keys"),
        ({"version": 1, "ima": {"files": {"/x": [b"x"]}}}, "policy"),
    ],
)
def test_mistakes(data: object, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.parse(data)
    assert message in str(caught.value)


def test_weak_keys_sign_nothing() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(PolicyError, match="expected an RSA key"):
        policy.parse({"version": 1, "ima": {"keys": [pem]}})


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_patterns(pattern: str, text: str) -> None:
    import re

    regular = "".join(".*" if sign == "*" else re.escape(sign) for sign in pattern)
    assert Pattern(pattern).matches(text) == (re.fullmatch(regular, text, re.DOTALL) is not None)


def test_a_pattern_can_not_be_made_slow() -> None:
    assert not Pattern("a*" * 500 + "b").matches("a" * 100_000 + "c")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["version", "boot", "ima", "pcrs", "files", "keys", "0", "dbx"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(JUNK, st.sampled_from(["boot", "ima"]), st.sampled_from([*policy.Boot.__dataclass_fields__, "keys", "exclude"]))
def test_junk_is_a_policy_or_an_error(junk: object, part: str, key: str) -> None:
    for data in (junk, {"version": 1, part: junk}, {"version": 1, part: {key: junk}}):
        try:
            policy.parse(data)
        except PolicyError as err:
            assert str(err).startswith("policy")
