"""Secrets in the external pillar, by Salt's own loader, runner and sdb."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import salt.config
import salt.loader
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support import checkout
from support.fleet.fleets import published

from netspace.attestation.minion import secret_key
from netspace.attestation.sealed_value import Place
from netspace.fleet.published import Register
from netspace.layout import Layout

WORD = "correct horse battery staple"
NONE: dict[str, Any] = {"tpm": None}
FLEET = {
    "hosts": {"h1": {"attestation": {"verifier": "master", "verifier_keys": ["x" * 43]}}, "h2": {}},
    "environments": {
        "web": {"on": "h1", "image": "tar:/srv/shop.tar", "secrets": {"db": "sdb://store/db", "k": "sdb://store/none"}},
        "api": {"on": "h2", "image": "tar:/srv/shop.tar"},
    },
}
STANDING = 'def standing(minion):\n    return {{"level": {level!r}, "keys": []}}\n'


class Master:
    """A master with a fleet, a store of secrets, and the host ``h1`` that gave its key."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        (folder / "fleet.yaml").write_text(json.dumps(FLEET))
        (folder / "store.yaml").write_text(json.dumps({"db": WORD}))
        (folder / "served").mkdir()
        facts = published(["h1", "h2"])
        facts["h1"] = msgspec.structs.replace(facts["h1"], secret_key=secret_key.recipient(layout, NONE).text)
        for one in facts.values():
            Register(folder / "kept/hosts").write(one)
        self.folder = folder
        self.opts: dict[str, Any] = salt.config.apply_master_config(
            {
                "root_dir": str(folder),
                "cachedir": str(folder / "cache"),
                "pki_dir": str(folder / "pki"),
                "sock_dir": str(folder),
                "file_roots": {"base": [str(folder / "served")]},
                "netspace.fleet": {"folder": str(folder / "kept")},
                "netspace.attestation": {"folder": str(folder / "books")},
                "pillar_dirs": [str(checkout.ROOT / "_pillar")],
                "runner_dirs": [str(checkout.ROOT / "_runners")],
                "store": {"driver": "yaml", "files": [str(folder / "store.yaml")]},
            }
        )

    def judges(self, level: str) -> None:
        """Let the runner answer that each host has *level*."""
        (self.folder / "runners").mkdir(exist_ok=True)
        (self.folder / "runners/netspace_attestation.py").write_text(STANDING.format(level=level))
        self.opts["runner_dirs"] = [str(self.folder / "runners")]

    def pillar(self, minion: str = "h1", **more: Any) -> dict[str, Any]:
        opts = {**self.opts, "id": minion, "minion_id": minion, "grains": {}, "pillarenv": None, **more}
        found: dict[str, Any] = salt.loader.pillars(opts, {})["netspace"](minion, {}, str(self.folder / "fleet.yaml"))
        return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "host").mkdir()
    return Layout(root=tmp_path / "host")


@pytest.fixture
def master(tmp_path: Path, layout: Layout) -> Master:
    (tmp_path / "master").mkdir()
    return Master(tmp_path / "master", layout)


def secrets(pillar: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = pillar["netspace"]["environments"]["web"]["secrets"]
    return found


def test_host_gets_what_it_alone_opens(master: Master, layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    master.judges("L1")
    pillar = master.pillar()
    place = Place("h1", "web", "db", "L1")
    found, errors = secret_key.open_all(layout, NONE, {place: secrets(pillar)["db"]["sealed"]})
    assert found == {place: WORD.encode()} and not errors
    assert secrets(pillar)["k"] == {"minimum": "L1", "unread": True}
    assert WORD not in json.dumps(pillar) + caplog.text and "sdb://" not in json.dumps(pillar)
    assert "h1: secret web:k: its source has no text" in caplog.text
    kept = [
        path for path in (master.folder / "kept").rglob("*") if path.is_file() and WORD.encode() in path.read_bytes()
    ]
    assert not kept, "the slices in force have sources alone"


def test_host_that_the_runner_never_judged_gets_none(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    """A host that the real runner never appraised gets no secret."""
    key = rsa.generate_private_key(65537, 2048)
    (master.folder / "pki").mkdir()
    spki = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (master.folder / "pki/master.pub").write_bytes(spki)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (master.folder / "pki/master.pem").write_bytes(private)
    pillar = master.pillar()
    assert secrets(pillar) == {"db": {"minimum": "L1"}, "k": {"minimum": "L1"}}, caplog.text
    assert "the host has L0" in caplog.text


def test_store_of_the_minion_s_own_pillar_is_not_asked(master: Master, tmp_path: Path) -> None:
    master.judges("L1")
    del master.opts["store"]
    (tmp_path / "own.yaml").write_text(json.dumps({"db": WORD}))
    own = {"store": {"driver": "yaml", "files": [str(tmp_path / "own.yaml")]}}
    assert secrets(master.pillar(pillar=own))["db"] == {"minimum": "L1", "unread": True}


def test_host_without_secrets_costs_no_judgement(master: Master) -> None:
    master.opts["runner_dirs"] = []
    assert "api" in master.pillar("h2")["netspace"]["environments"]
