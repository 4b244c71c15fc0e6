"""Secrets in slices: a host gets a ciphertext only as the master's own results permit; a pillar has no plain secret."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from netspace.attestation import sealed_value
from netspace.attestation.minion import secret_key
from netspace.attestation.sealed_value import Place, Recipient
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError
from netspace.fleet import secrets
from netspace.fleet.secrets import Standing
from netspace.layout import Layout
from netspace.plugin import fleet_secrets
from netspace.spec import parse

WORD = "correct horse battery staple"
URI = "sdb://store/db"
NONE: dict[str, Any] = {"tpm": None}


def section(minimum: str = "L1", uri: str = URI) -> dict[str, Any]:
    secret = {"source": uri, "minimum": minimum}
    return {
        "environments": {"web": {"image": "tar:/srv/a.tar", "secrets": {"db": secret, "k": uri}}, "api": {"image": "x"}}
    }


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path)


@pytest.fixture
def key(layout: Layout) -> str:
    return secret_key.recipient(layout, NONE).text


def filled(key: str, standing: Standing, minimum: str = "L1", read: Any = None) -> secrets.Filled:
    return secrets.filled(section(minimum), "m1", key, standing, read or {URI: WORD}.__getitem__)


def test_host_opens_what_the_master_sealed(layout: Layout, key: str) -> None:
    found = filled(key, Standing(1, ()))
    assert not found.problems and WORD not in json.dumps(found.section) and URI not in json.dumps(found.section)
    given = found.section["environments"]["web"]["secrets"]
    place = Place("m1", "web", "db", "L1")
    assert secret_key.open_all(layout, NONE, {place: given["db"]["sealed"]})[0] == {place: WORD.encode()}
    parsed = parse.declaration({**found.section, "environments": {"web": found.section["environments"]["web"]}})
    assert parsed.environments["web"].secrets.keys() == {"db", "k"}
    assert section() == section(), "the slice itself is as it was"


@pytest.mark.parametrize(("level", "minimum"), [(0, "L1"), (1, "L2"), (2, "L3"), (4, "L5")])
def test_lower_level_by_the_master_gets_none(key: str, level: int, minimum: str) -> None:
    found = filled(key, Standing(level, ()), minimum)
    assert found.section["environments"]["web"]["secrets"]["db"] == {"minimum": minimum}
    assert f"the host has L{level}" in found.problems["web", "db"]


def test_level_alone_is_not_enough_for_a_key_in_a_file(key: str) -> None:
    found = filled(key, Standing(5, ()), "L3")
    assert "sealed" not in found.section["environments"]["web"]["secrets"]["db"]
    assert "in a file" in found.problems["web", "db"]


def test_key_of_another_tpm_gets_none(fake_tpm: Any) -> None:
    one, other = fake_tpm, type(fake_tpm)()
    ours, theirs = structures.public(one.ek_public), structures.public(other.ek_public)
    key = Recipient("tpm", template="EK-ECC256", endorsement=coded(one.ek_public), anchor=coded(one.ak_public)).text
    good = filled(key, Standing(3, (ours.fingerprint,)), "L3")
    assert not good.problems
    sealed = sealed_value.read(good.section["environments"]["web"]["secrets"]["db"]["sealed"])
    content_key = one.activate(sealed_value.decoded(sealed.credential), sealed_value.decoded(sealed.share))
    assert sealed_value.opened(sealed, content_key, Place("m1", "web", "db", "L3")) == WORD.encode()
    with pytest.raises((AssertionError, ValueError)):
        other.activate(sealed_value.decoded(sealed.credential), sealed_value.decoded(sealed.share))
    for keys in (), (theirs.fingerprint,):
        found = filled(key, Standing(3, keys), "L3")
        assert set(found.problems) == {("web", "db"), ("web", "k")} and WORD not in json.dumps(found.section)


def coded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def test_host_that_gave_no_key_gets_none() -> None:
    found = filled("", Standing(5, ()))
    assert "join it again" in found.problems["web", "db"]


def test_error_of_a_source_tells_nothing_and_keeps_what_is_there(key: str) -> None:
    def broken(uri: str) -> object:
        raise ValueError(WORD)

    found = filled(key, Standing(1, ()), read=broken)
    assert found.section["environments"]["web"]["secrets"]["db"] == {"minimum": "L1", "unread": True}
    assert WORD not in str(found.problems) and "ValueError" in found.problems["web", "db"]


@pytest.mark.parametrize("bad", [URI, "", None, 7, {"x": WORD}, "x" * 16385])
def test_source_without_a_text_is_no_secret(key: str, bad: object) -> None:
    found = filled(key, Standing(1, ()), read=lambda uri: bad)
    assert found.section["environments"]["web"]["secrets"]["db"].get("unread") and WORD not in str(found)


def test_runner_that_fails_gives_no_pillar(key: str) -> None:
    register = mock.Mock(spec=["read"])
    register.read.return_value = None
    for answer in {}, {"valid": False, "reason": "x"}, {"level": "L9", "keys": []}, {"level": None}:
        with pytest.raises(NetspaceError):
            fleet_secrets.filled({"netspace": section()}, "m1", register, lambda minion, a=answer: a, {}.__getitem__)


# -- a minion that gives keys and claims of its own --------------------------------------------------


def broken(seed: int, layout: Layout) -> str:
    """Return how a minion without a TPM got a secret that demands more than its level; empty if it got none."""
    chance = random.Random(seed)
    mine = secret_key.recipient(layout, NONE)
    for _ in range(100):
        level, minimum = chance.randrange(6), f"L{chance.randint(1, 5)}"
        found = filled(mine.text, Standing(level, ("ab" * 32,)), minimum)
        for name, one in found.section["environments"]["web"]["secrets"].items():
            if "sealed" in one and (level < int(one["minimum"][1:]) or int(one["minimum"][1:]) >= 2):
                return f"{name}: {level} {one['minimum']}"
            if "source" in one:
                return f"{name}: its source"
    return ""


def test_minion_gets_no_secret_beyond_its_level(layout: Layout) -> None:
    assert not any(broken(seed, layout) for seed in range(5))


def test_minion_finds_a_check_that_is_taken_out(layout: Layout) -> None:
    with mock.patch.object(secrets, "_TPM", 9):
        assert any(broken(seed, layout) for seed in range(5))
    assert len(filled(secret_key.recipient(layout, NONE).text, Standing(1, ())).section) <= sealed_value.MOST
