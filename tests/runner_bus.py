"""The master's runner without a master: what it sends is answered here, by hosts of the test's own.

For tests of the runner itself, and for the benchmark of a large fleet. The hosts here have no TPM.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import checkout
import salt.config
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from netspace.attestation import attester, software
from netspace.attestation.evidence import Context, key_fingerprint
from netspace.layout import Layout


def load(folder: Path, settings: dict[str, Any], **opts: Any) -> tuple[Any, str]:
    """Return the runner of a master whose files are in *folder*, and the fingerprint of the master's key.

    :param settings: of ``netspace.attestation``. *opts*: more of its configuration.
    """
    spec = importlib.util.spec_from_file_location("attest_runner", checkout.ROOT / "_runners/netspace_attestation.py")
    assert spec is not None and spec.loader is not None
    runner: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "pki").mkdir()
    (folder / "pki/master.pub").write_bytes(pem)
    runner.__opts__ = {
        **salt.config.DEFAULT_MASTER_OPTS,
        "pki_dir": str(folder / "pki"),
        "cachedir": str(folder / "cache"),
        "netspace.attestation": {"folder": str(folder / "books"), "jitter": 0, **settings},
        **opts,
    }
    return runner, key_fingerprint(pem)


class Bus:
    """Minions without TPMs, and what is told to whom."""

    def __init__(self, folder: Path, master: str) -> None:
        self.key = software.load(Layout(root=folder))
        self.master = master
        self.asked: list[dict[str, Any]] = []
        self.accepted: dict[str, str] = {}
        self.silent: set[str] = set()
        self.events: list[tuple[str, str]] = []

    def ask(self, minions: list[str], function: str, arguments: Any, timeout: int) -> dict[str, Any]:
        """Stand for the runner's ``_ask``."""
        if function == "accept":
            self.accepted.update(arguments["tokens"])
            return {minion: ({"stored": True}, "") for minion in minions}
        assert list(arguments["challenges"]) == minions
        self.asked.append(arguments["challenges"])
        return {
            minion: (None, "did not answer within 1 s") if minion in self.silent else (self.answer(minion, one), "")
            for minion, one in arguments["challenges"].items()
        }

    def answer(self, minion: str, one: dict[str, Any]) -> dict[str, Any]:
        context = Context(self.master, minion, one["session"], bytes.fromhex(one["nonce"]), binding=b"boot")
        return {"boot": "boot", "evidence": attester.by_key(self.key, context).wire()}
