"""A minion with a software TPM requests the acceptance of its pending Salt key from the master.

The requests go over HTTP, and the minion uses netspace's execution module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.key
import salt.utils.event
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from salt.exceptions import CommandExecutionError
from support import checkout
from support.attestation import runner_bus
from support.attestation.software_tpm import Factory

from netspace.attestation.fleet import admission_http
from netspace.layout import Layout
from netspace.plugin import arguments


class Applying:
    """A minion whose key is pending at a master, with the execution module that requests its acceptance."""

    def __init__(self, folder: Path, name: str, pki: Path) -> None:
        spec = importlib.util.spec_from_file_location("applying", checkout.ROOT / "_modules/netspace_admission.py")
        assert spec is not None and spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        own = folder / f"pki-{name}"
        own.mkdir()
        key = rsa.generate_private_key(65537, 2048)
        (own / "minion.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (own / "minion.pub").write_bytes(self.public)
        (pki / "minions_pre" / name).write_bytes(self.public)
        self.module.__opts__ = {"id": name, "pki_dir": str(own)}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def bus(*_: Any, **__: Any) -> Iterator[Any]:
        class Fire:
            @staticmethod
            def fire_event(data: dict[str, Any], tag: str) -> None:
                found.append((tag, str(data.get("reason", ""))))

        yield Fire

    monkeypatch.setattr(salt.utils.event, "get_event", bus)
    return found


def test_a_pending_key_is_accepted_by_its_hosts_tpm_alone(
    make_tpm: Callable[[Factory | None], Any],
    factory: Factory,
    other_factory: Factory,
    layout: Layout,
    tmp_path: Path,
    events: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inventory = tmp_path / "tpms"
    inventory.write_text("web9 " + "00" * 32 + "\n")
    given = {"inventory": str(inventory), "roots": str(factory.roots), "groups": [{"name": "default", "minimum": "L3"}]}
    master = tmp_path / "master"
    master.mkdir()
    runner, _ = runner_bus.load(master, given)
    pki = master / "pki"
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (pki / name).mkdir()
    assert "retcode" not in runner.ca_init()
    monkeypatch.setattr(arguments, "layout", lambda opts: layout)
    genuine, impostor = make_tpm(factory).tcti, make_tpm(other_factory).tcti
    with admission_http.Service(("127.0.0.1", 0), runner._desk()) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{service.server_address[1]}"
        try:
            web1, web2 = Applying(tmp_path, "web1", pki), Applying(tmp_path, "web2", pki)
            # An id that isn't in the inventory leaves no trace, so it isn't made to wait either.
            for _ in range(2):
                with pytest.raises(CommandExecutionError, match="the inventory does not name web1"):
                    web1.module.apply_(url, tpm=genuine, patience=0)
            # The operator lists the TPM: its digests stand in what the host shows.
            shown = web1.module.Applicant(
                layout, web1.module.settings.of(declared(web1, genuine)), "web1", str, b""
            )._shown({"template": "", "period": "", "others": False})
            inventory.write_text(f"web1 {fingerprint(shown)}\nweb2 {'11' * 32}\n")
            assert web1.module.apply_(url, tpm=genuine) == {"accepted": True, "level": "L3"}
            # Another minion with that TPM, and with one of its own; the events tell why.
            for tpm in (genuine, impostor):
                service.desk._refused.clear()
                with pytest.raises(CommandExecutionError, match="refuses this minion's key"):
                    web2.module.apply_(url, tpm=tpm)
            with pytest.raises(CommandExecutionError, match="moment ago"):
                web2.module.apply_(url, tpm=genuine, patience=0)
        finally:
            service.shutdown()
            thread.join()
    assert (pki / "minions/web1").read_bytes() == web1.public
    assert sorted(path.name for path in (pki / "minions_pre").iterdir()) == ["web2"]
    folders = {"root_dir": str(master), "pki_dir": str(pki), "cachedir": str(master / "cache"), "sock_dir": str(master)}
    listed = salt.key.Key(salt.config.apply_master_config(folders)).list_keys()
    assert (listed["minions"], listed["minions_pre"]) == (["web1"], ["web2"]), "Salt's own view"
    assert ("netspace/admission/web1/accepted", "") in events
    assert sum(tag == "netspace/admission/web2/refused" for tag, _ in events) == 2


def declared(minion: Applying, tpm: str) -> Any:
    return minion.module.parse.declaration({"attestation": {"tpm": tpm}}).attestation


def fingerprint(shown: dict[str, Any]) -> str:
    import base64

    from netspace.attestation.tpm import structures

    return structures.endorsement(base64.b64decode(shown["ek"])).fingerprint
