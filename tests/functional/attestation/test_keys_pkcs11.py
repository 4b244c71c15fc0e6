"""The master's keys in a hardware module (PKCS #11; here SoftHSM): made and used in the module, and in no file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.attestation import runner_bus, tokens_pkcs11
from support.attestation.runner_bus import Bus
from support.attestation.tokens_pkcs11 import PIN

from netspace.attestation import ear, hsm, signing_keys
from netspace.errors import MissingError, NetspaceError


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A token for all tests of this file, because a process can't unload a loaded PKCS #11 module."""
    pytest.importorskip("pkcs11", reason="pip install python-pkcs11")
    if reason := tokens_pkcs11.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("token")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(folder / "conf"))
    yield tokens_pkcs11.make(folder)
    patch.undo()


@pytest.fixture
def module(token: dict[str, str]) -> hsm.Module:
    found = hsm.module(token)
    assert found is not None
    return found


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_master_with_all_its_keys_in_a_module(
    token: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"groups": [{"name": "default", "minimum": "L1"}], "pkcs11": token}
    runner, master = runner_bus.load(tmp_path, settings)
    bus = Bus(tmp_path / "host", master)
    runner_bus.join(runner, bus.ask)
    monkeypatch.setattr(runner, "_minions", lambda target, kind: ["web1"])
    monkeypatch.setattr(runner, "_announce", lambda fleet, standing: None)

    first = runner.ca_init()
    assert first["key"].startswith("pkcs11:token=netspace;object=netspace-ca-"), first
    assert runner.attest()["web1"]["state"] == "trusted"
    keys = runner.jwks()["keys"]
    token_made = ear.opened(runner.ear_token("web1")["token"], ear.RESULT, [ear.parse_jwk(keys[0])])
    assert token_made["sub"] == "web1"

    # The books have references, and nowhere a key or the PIN.
    written = everything(tmp_path / "books")
    assert b"PRIVATE KEY" not in written and PIN.encode() not in written
    assert written.count(b"pkcs11:token=netspace;object=") == 3  # root, intermediate, verifier

    # A certificate's path holds, and a revocation list is by the intermediate.
    chain = x509.load_pem_x509_certificates((tmp_path / "books/ca/chain.pem").read_bytes())
    chain[0].verify_directly_issued_by(chain[1])
    chain[1].verify_directly_issued_by(chain[1])
    listed = x509.load_pem_x509_crl(runner.ca_crl()["crl"].encode())
    assert listed.is_signature_valid(chain[0].public_key())

    # Rotation: another key, and what the last one signed stays good.
    second = runner.ca_renew()
    assert second["key"] != first["key"] and second["retired"] == 1

    # Without the configuration, or with another token, nothing is signed, and nothing is made in its place.
    for other in (None, {**token, "token": "other"}):
        runner.__opts__["netspace.attestation"]["pkcs11"] = other
        for found in (runner.jwks(), runner.ca_crl()):
            assert found["code"] == "input" and "netspace.attestation:pkcs11" in found["reason"], found


def test_a_root_elsewhere_and_a_key_in_the_module_here(token: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, _ = runner_bus.load(tmp_path / "here", {"pkcs11": token})
    there, _ = runner_bus.load(tmp_path / "there", {})
    (tmp_path / "ca.csr").write_text(here.ca_init(root_elsewhere=True)["request"])
    assert (tmp_path / "here/books/requested.pem").read_bytes().startswith(hsm.PREFIX)
    signed = there.ca_sign(str(tmp_path / "ca.csr"), str(tmp_path / "there/root"))
    (tmp_path / "ca.pem").write_text(signed["certificate"])
    found = here.ca_import(str(tmp_path / "ca.pem"), signed["root"])
    assert found["root_here"] is False and found["key"].startswith("pkcs11:"), found


def test_keys_do_not_leave_and_sign_with_sha256_alone(module: hsm.Module) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = module.create("test")
    key.public_key().verify(key.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(NetspaceError, match="SHA-256"):
        key.sign(b"x", ec.ECDSA(hashes.SHA1()))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for take in (
        key.private_numbers,
        lambda: key.private_bytes(pem, form, serialization.NoEncryption()),
        lambda: key.exchange(ec.ECDH(), key.public_key()),
    ):
        with pytest.raises(NetspaceError, match="stays there"):
            take()


def test_a_key_that_the_module_would_give_away_is_not_used(module: hsm.Module) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with hsm._session(module) as (_, session):
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        domain = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        loose = {pkcs11.Attribute.SENSITIVE: False, pkcs11.Attribute.EXTRACTABLE: True}
        domain.generate_keypair(
            mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN, store=True, label="loose", private_template=loose
        )
    with pytest.raises(NetspaceError, match="can be exported"):
        module.load("loose")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": "none"}, "token 'none'"),
        ({"module": "/nonexistent.so"}, "nonexistent"),
        ({"pin_file": "/nonexistent"}, "put the PIN into this file"),
    ],
)
def test_what_is_wrong_is_said_and_never_the_pin(token: dict[str, str], change: dict[str, str], message: str) -> None:
    found = hsm.module({**token, **change})
    assert found is not None
    with pytest.raises(NetspaceError, match=message) as caught:
        found.create("test")
    assert PIN not in str(caught.value)


def test_a_wrong_pin_and_one_that_others_can_read(token: dict[str, str], tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.write_text("0000")
    pin.chmod(0o644)
    found = hsm.module({**token, "pin_file": str(pin)})
    assert found is not None
    with pytest.raises(NetspaceError, match="other users can access this file; run chmod go="):
        found.create("test")
    pin.chmod(0o600)
    with pytest.raises(NetspaceError, match=r"(?i)pin"):
        found.create("test")


def test_without_the_library_it_says_how_to_get_it(module: hsm.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(MissingError, match="pip install python-pkcs11"):
        module.create("test")


def test_a_reference_that_is_none(module: hsm.Module, tmp_path: Path) -> None:
    for raw in (b"pkcs11:", b"pkcs11:token=netspace;object=../x;type=private\n", b"pkcs11:token=netspace;object=a\n"):
        with pytest.raises(NetspaceError, match="not a reference"):
            signing_keys.private_key(raw, module, tmp_path / "x")
    for data in ({}, {"module": "x"}, [], {"module": 1, "token": "t", "pin_file": "p"}):
        with pytest.raises(NetspaceError, match="pkcs11: expected"):
            hsm.module(data)
    with pytest.raises(NetspaceError, match="pkcs11:token"):
        hsm.module({"module": "x", "token": "a;b", "pin_file": "p"})
