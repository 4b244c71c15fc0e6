"""Secrets encrypted to software TPMs, and the only TPM that opens each: tests of ``docs/secrets.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from netspace.attestation import sealed_value
from netspace.attestation.minion import secret_key
from netspace.attestation.sealed_value import Place
from netspace.layout import Layout

HERE = Place("m1", "web", "db", "L3")


Make = Callable[[], Any]


@pytest.fixture
def tpm(make_tpm: Make) -> Any:
    return make_tpm()


@pytest.fixture
def other_tpm(make_tpm: Make) -> Any:
    return make_tpm()


def settings(tpm: Any) -> dict[str, Any]:
    return {"tpm": tpm.tcti}


def test_one_tpm_alone_opens_a_secret(tpm: Any, other_tpm: Any, layout: Layout) -> None:
    to = sealed_value.recipient(secret_key.recipient(layout, settings(tpm)).text)
    assert to.kind == "tpm" and to == secret_key.recipient(layout, settings(tpm)), "derived again, and the same"
    places = [HERE, HERE._replace(name="k")]
    texts = {place: sealed_value.seal(to, place, place.name.encode()) for place in places}
    found, errors = secret_key.open_all(layout, settings(tpm), texts)
    assert found == {place: place.name.encode() for place in places} and not errors
    # The same disk in another machine.
    found, errors = secret_key.open_all(layout, settings(other_tpm), texts)
    assert not found and errors.keys() == texts.keys()
    found, errors = secret_key.open_all(layout, {"tpm": None}, texts)
    assert not found and errors.keys() == texts.keys()
    assert not list(layout.state.rglob("*secret*")), "no key of a TPM is in a file"


def test_one_bad_ciphertext_does_not_close_the_others(tpm: Any, layout: Layout) -> None:
    to = secret_key.recipient(layout, settings(tpm))
    good, bad = HERE, HERE._replace(name="k")
    moved = sealed_value.seal(to, HERE, b"x")
    found, errors = secret_key.open_all(layout, settings(tpm), {bad: moved, good: sealed_value.seal(to, good, b"y")})
    assert found == {good: b"y"} and errors.keys() == {bad}
    text = sealed_value.read(moved)

    for wrong in (
        {"credential": text.share},
        {"share": text.credential},
        {"template": "EK-RSA2048"},
        {"credential": ""},
    ):
        changed = msgspec.structs.replace(text, **wrong).encoded
        found, errors = secret_key.open_all(
            layout, settings(tpm), {good: changed, bad: sealed_value.seal(to, bad, b"z")}
        )
        assert found == {bad: b"z"} and errors.keys() == {good}, wrong


def test_tpm_that_is_gone_is_not_replaced_by_a_key_in_a_file(tpm: Any, layout: Layout) -> None:
    text = sealed_value.seal(secret_key.recipient(layout, settings(tpm)), HERE, b"x")
    tpm.stop()
    found, errors = secret_key.open_all(layout, settings(tpm), {HERE: text})
    assert not found and errors.keys() == {HERE}
    with pytest.raises(Exception, match="tpm"):
        secret_key.recipient(layout, settings(tpm))
