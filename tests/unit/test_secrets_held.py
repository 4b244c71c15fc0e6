"""Secrets on a host, without environments: what is on disk, what is in memory, and what trust decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netspace.environment.storage import injected_files
from netspace.host import secrets
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.trust import Trust
from netspace.spec.types import Environment

WORD = "correct horse battery staple"
URI = "sdb://store/db"
GOOD, NONE = Trust(1, "self", ""), Trust()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("1" * 32)
    return Layout(root=tmp_path)


def wanted(given: dict[str, Any]) -> dict[str, Environment]:
    declared = parse.declaration({"environments": {"web": {"image": "tar:/srv/a.tar", "secrets": given}}})
    return dict(declared.environments)


def taken(
    layout: Layout, given: dict[str, Any], store: dict[str, object], trust: Trust = GOOD, minion: str = ""
) -> list[str]:
    """Take and hold secrets; return why others are withheld."""
    found = secrets.take(layout, wanted(given), trust, store.__getitem__, minion)
    secrets.hold(layout, found)
    assert WORD not in str(found.result)
    return [one.message for one in found.result.plan.refusals]


def on_disk(layout: Layout) -> bytes:
    return b"".join(path.read_bytes() for path in layout.state.rglob("*") if path.is_file())


def test_secret_is_plain_in_memory_alone(layout: Layout) -> None:
    assert not taken(layout, {"db": URI}, {URI: WORD})
    assert secrets.held(layout, "web") == {"db": WORD.encode()}
    assert WORD.encode() not in on_disk(layout) and secrets.recorded(layout) == {"web"}
    held = layout.opened_secrets / "web" / "db"
    assert held.stat().st_mode & 0o777 == 0o600 and held.parent.stat().st_mode & 0o777 == 0o700
    assert injected_files.read(layout, "web") == {"secret.db": WORD.encode()}
    assert not injected_files.keep(layout, {"web": {"secret.db": WORD.encode()}}) and WORD.encode() not in on_disk(
        layout
    )


def test_second_apply_writes_nothing(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    before = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")}
    taken(layout, {"db": URI}, {URI: WORD})
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")} == before


def test_dry_run_writes_nothing(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    before = on_disk(layout)
    found = secrets.take(layout, wanted({"db": URI, "k": URI}), GOOD, {URI: "new"}.__getitem__, "", test=True)
    assert found.opened == {"web": {"db": b"new", "k": b"new"}}
    assert on_disk(layout) == before and secrets.held(layout, "web") == {"db": WORD.encode()}


def test_reboot_opens_what_trust_permits(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    secrets.withdraw(layout, ["web"])
    assert not secrets.held(layout, "web")
    assert not secrets.revise(layout, NONE) and not secrets.held(layout, "web")
    assert not secrets.revise(layout, GOOD) and secrets.held(layout, "web") == {"db": WORD.encode()}
    assert not secrets.revise(layout, NONE) and not secrets.held(layout, "web")


def test_host_without_a_tpm_keeps_no_secret_that_demands_one(layout: Layout) -> None:
    """A secret that demands a TPM isn't kept on a host without one, whatever level the host reached in another way."""
    why = taken(layout, {"db": {"source": URI, "minimum": "L2"}}, {URI: WORD}, Trust(5, "self", ""))
    assert len(why) == 1 and "has no TPM" in why[0]
    assert not secrets.held(layout, "web") and not secrets.recorded(layout)


def test_higher_demand_ends_what_was_held(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    why = taken(layout, {"db": {"source": URI, "minimum": "L3"}}, {URI: WORD})
    assert "needs trust level L3, this host has L1" in why[0]
    assert not secrets.held(layout, "web") and not secrets.recorded(layout)


@pytest.mark.parametrize("bad", [{}, {URI: URI}, {URI: ""}, {URI: None}, {URI: {"x": WORD}}, {URI: "x" * 16385}])
def test_source_that_fails_leaves_the_secret(layout: Layout, bad: dict[str, object]) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    assert len(taken(layout, {"db": URI}, bad)) == 1
    assert secrets.held(layout, "web") == {"db": WORD.encode()}
    assert not secrets.revise(layout, GOOD) and secrets.held(layout, "web") == {"db": WORD.encode()}


def test_undeclared_secret_is_gone_from_memory_and_disk(layout: Layout) -> None:
    taken(layout, {"db": URI, "k": URI}, {URI: WORD})
    taken(layout, {"k": URI}, {URI: WORD})
    assert set(secrets.held(layout, "web")) == {"k"} and b'"db"' not in on_disk(layout)
    taken(layout, {}, {})
    assert not secrets.held(layout, "web") and not secrets.recorded(layout)


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"secrets": {"db": 7}}', b'{"secrets": {}, "more": 1}'])
def test_damaged_record_is_made_again_by_an_apply(layout: Layout, content: bytes) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    path = layout.records(secrets.KIND) / "web.json"
    path.write_bytes(content)
    assert not secrets.revise(layout, GOOD) or not secrets.held(layout, "web")
    assert not taken(layout, {"db": URI}, {URI: WORD})
    secrets.withdraw(layout, ["web"])
    assert not secrets.revise(layout, GOOD) and secrets.held(layout, "web") == {"db": WORD.encode()}


def test_leftover_of_a_killed_run_is_no_secret(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    (layout.opened_secrets / "web" / ".db.new").write_bytes(b"half")
    assert set(injected_files.read(layout, "web")) == {"secret.db"} and set(secrets.held(layout, "web")) == {"db"}
    taken(layout, {"db": URI}, {URI: WORD})
    assert [path.name for path in (layout.opened_secrets / "web").iterdir()] == ["db"]


# -- ciphertexts of the fleet's master --------------------------------------------------------------


def by_master(
    layout: Layout, word: str, place: tuple[str, str, str, str] = ("m1", "web", "db", "L1")
) -> dict[str, Any]:
    from netspace.attestation import sealed_value
    from netspace.attestation.minion import secret_key

    text = sealed_value.seal(secret_key.recipient(layout, {"tpm": None}), sealed_value.Place(*place), word.encode())
    return {"db": {"sealed": text, "minimum": place[3]}}


def test_ciphertext_of_the_master_is_opened_for_its_place(layout: Layout) -> None:
    assert not taken(layout, by_master(layout, WORD), {}, minion="m1")
    assert secrets.held(layout, "web") == {"db": WORD.encode()} and WORD.encode() not in on_disk(layout)
    for place in ("m2", "web", "db", "L1"), ("m1", "web", "k", "L1"), ("m1", "api", "db", "L1"):
        why = taken(layout, by_master(layout, "other", place), {}, minion="m1")
        assert len(why) == 1 and secrets.held(layout, "web") == {"db": WORD.encode()}, place
    assert not taken(layout, by_master(layout, "new"), {}, minion="m1")
    assert secrets.held(layout, "web") == {"db": b"new"}


def test_secret_that_the_master_withholds_is_withdrawn(layout: Layout) -> None:
    taken(layout, by_master(layout, WORD), {}, minion="m1")
    why = taken(layout, {"db": {"minimum": "L1"}}, {}, minion="m1")
    assert len(why) == 1 and "master" in why[0]
    assert not secrets.held(layout, "web") and not secrets.recorded(layout)


def test_secret_that_the_master_can_not_read_stays(layout: Layout) -> None:
    taken(layout, by_master(layout, WORD), {}, minion="m1")
    assert len(taken(layout, {"db": {"minimum": "L1", "unread": True}}, {}, minion="m1")) == 1
    assert secrets.held(layout, "web") == {"db": WORD.encode()}


def test_card_and_record_have_names_alone(layout: Layout) -> None:
    taken(layout, {"db": URI}, {URI: WORD})
    record = json.loads((layout.records(secrets.KIND) / "web.json").read_bytes())
    assert set(record) == {"secrets", "version"} and set(record["secrets"]["db"]) == {"sealed", "minimum", "host"}
