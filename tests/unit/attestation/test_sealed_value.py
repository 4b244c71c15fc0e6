"""Ciphertexts of secrets: hosts that open them, their strict parser, and an attacker who changes and moves them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from netspace.attestation import sealed_value
from netspace.attestation.minion import secret_key
from netspace.attestation.sealed_value import Place, Recipient, SealedError
from netspace.layout import Layout

TRIES = 600
NONE: dict[str, Any] = {"tpm": None}
HERE = Place("web1", "web", "db", "L1")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return _host(tmp_path / "a", "1" * 32)


def _host(root: Path, machine: str) -> Layout:
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").write_text(machine)
    return Layout(root=root)


def opened(layout: Layout, text: str, place: Place = HERE) -> bytes | None:
    found, errors = secret_key.open_all(layout, NONE, {place: text})
    assert found.keys() | errors.keys() == {place}
    return found.get(place)


def test_secret_opens_at_its_host_and_place_alone(layout: Layout, tmp_path: Path) -> None:
    text = sealed_value.seal(secret_key.recipient(layout, NONE), HERE, b"hunter2")
    assert opened(layout, text) == b"hunter2" and "hunter2" not in text
    assert opened(_host(tmp_path / "b", "2" * 32), text) is None
    for other in ("web2", "web", "db", "L1"), ("web1", "w", "ebdb", "L1"), ("web1", "web", "dc", "L1"), ("", *HERE[1:]):
        assert opened(layout, text, Place(*other)) is None


def test_clone_with_another_machine_id_opens_nothing(layout: Layout) -> None:
    text = sealed_value.seal(secret_key.recipient(layout, NONE), HERE, b"hunter2")
    (layout.root / "etc/machine-id").write_text("2" * 32)
    assert opened(layout, text) is None


def test_key_in_a_file_opens_nothing_that_demands_a_tpm(layout: Layout) -> None:
    place = HERE._replace(minimum="L2")
    text = sealed_value.seal(secret_key.recipient(layout, NONE), place, b"hunter2")
    assert opened(layout, text, place) is None


def test_same_secret_has_another_ciphertext_each_time(layout: Layout) -> None:
    to = secret_key.recipient(layout, NONE)
    assert len({sealed_value.seal(to, HERE, b"hunter2") for _ in range(50)}) == 50


def test_key_of_a_host_is_kept_for_root_alone(layout: Layout) -> None:
    first = secret_key.recipient(layout, NONE)
    path = layout.records("attestation") / "secret-key.json"
    assert secret_key.recipient(layout, NONE) == first and path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "aGk="}))
    with pytest.raises(Exception, match="not a key") as caught:
        secret_key.recipient(layout, NONE)
    assert "aGk" not in str(caught.value)


# -- an attacker who has ciphertexts, and writes any texts -----------------------------------------


def attacks(chance: random.Random, texts: list[str], places: list[Place]) -> Iterator[tuple[str, Place]]:
    """Yield ciphertexts that an attacker makes from genuine ones, each with a place (host, environment) for its use."""
    for _ in range(TRIES):
        one, two = (json.loads(chance.choice(texts)) for _ in range(2))
        how = chance.randrange(6)
        if how == 0:  # elsewhere
            pass
        elif how == 1:  # parts of two
            for key in chance.sample(sorted(one), chance.randint(1, 3)):
                one[key] = two[key]
        elif how == 2:  # a changed byte
            key = chance.choice(["share", "text"])
            raw = bytearray(base64.b64decode(one[key]))
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            one[key] = base64.b64encode(raw).decode()
        elif how == 3:  # cut short, or longer
            raw = base64.b64decode(one["text"])
            one["text"] = base64.b64encode(chance.choice([raw[:-1], raw + b"\0", b"", raw[:15]])).decode()
        elif how == 4:  # a share that would make a known key
            one["share"] = base64.b64encode(chance.choice([bytes(32), b"\1" + bytes(31), bytes(31)])).decode()
        else:  # another form
            one[chance.choice([*one, "more"])] = chance.choice([None, 7, [], {}, "x", "tpm", "software", True, -1])
        yield json.dumps(one), chance.choice(places)


def broken(layout: Layout, seed: int) -> str:
    """Return how an attacker got a secret where it doesn't belong; empty if he didn't."""
    chance = random.Random(seed)
    to = secret_key.recipient(layout, NONE)
    places = [Place(host, env, name, level) for host in ("a", "b") for env in ("w", "x") for name in ("d", "e")
              for level in ("L1", "L2")]  # fmt: skip
    secrets = {place: repr(place).encode() for place in places}
    texts = [sealed_value.seal(to, place, plain) for place, plain in secrets.items()]
    for text, place in attacks(chance, texts, places):
        plain = opened(layout, text, place)
        if plain is not None and (plain != secrets[place] or place.minimum == "L2"):
            return f"{place}: {text}"
    return ""


@pytest.mark.parametrize("seed", range(3))
def test_attacker_moves_and_changes_no_secret(layout: Layout, seed: int) -> None:
    assert not broken(layout, seed)


@pytest.mark.parametrize("hole", ["place", "level"])
def test_attacker_finds_each_check_that_is_taken_out(layout: Layout, hole: str) -> None:
    taken_out = (
        mock.patch.object(Place, "context", b"")
        if hole == "place"
        else mock.patch.object(secret_key, "LEAST_OF_TPM", "L9")
    )
    with taken_out:
        assert any(broken(layout, seed) for seed in range(3))


# -- readers of untrusted texts -----------------------------------------------------------------


BAD = [
    None,
    7,
    "",
    "[]",
    "{}",
    "x" * 50_000,
    '{"kind":"tpm"}',
    "[" * 10_000,
    '{"kind":"software","kind":"tpm"}',
    "\ud800",
]


@pytest.mark.parametrize("text", BAD)
def test_reader_refuses_what_is_no_ciphertext(text: object) -> None:
    with pytest.raises(SealedError):
        sealed_value.read(text)
    with pytest.raises(SealedError):
        sealed_value.recipient(text)


def test_recipient_is_a_key_of_one_kind() -> None:
    key = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    good = Recipient("software", key=key)
    assert sealed_value.recipient(good.text) == good
    for wrong in (
        Recipient("software", key=key[:-4]),
        Recipient("software", key=key, anchor=key),
        Recipient("tpm", key=key),
        Recipient("tpm", template="EK-ECC256", endorsement=key, anchor=key),
    ):
        with pytest.raises(SealedError):
            sealed_value.recipient(wrong.text)
    with pytest.raises(SealedError):
        sealed_value.seal(Recipient("software", key=base64.b64encode(bytes(32)).decode()), HERE, b"x")
