"""Quotes in files: each possible fault has its own code."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_forge, boot_logs

import netspace
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.refusals import Malformed
from netspace.attestation.tpm import pcr_values, structures
from netspace.attestation.verifier import offline
from netspace.attestation.verifier.offline import Logs

ROOT = Path(__file__).parents[3]


def logs(boot: str, /, **changes: bytes) -> Logs:
    found = {
        "boot": boot_logs.read(f"{boot}/binary_bios_measurements"),
        "ima": boot_logs.read(f"{boot}/ima_binary_runtime_measurements"),
        "systemd": boot_logs.read("uki/systemd-tpm2-measure.log") if boot == "uki" else b"",
    }
    return Logs(**{**found, **changes})


def verify(boot: str, **changes: Any) -> offline.Report:
    files = {name: boot_logs.read(f"{boot}/{name}") for name in ("quote.msg", "quote.sig", "ak.pub", "quote.pcr")}
    settings = {"nonce": bytes.fromhex("00112233"), "pcrs": files["quote.pcr"], "logs": logs(boot), **changes}
    attest, signature, ak = (
        settings.pop(key, files[name])
        for key, name in (("attest", "quote.msg"), ("signature", "quote.sig"), ("ak", "ak.pub"))
    )
    return offline.verify_quote(attest, signature, ak, **settings)


@pytest.mark.parametrize("boot", ["shim-grub", "uki"])
@pytest.mark.parametrize("given", [True, False])
def test_our_own_boots(boot: str, given: bool) -> None:
    report = verify(boot) if given else verify(boot, pcrs=b"")
    assert report.code == "ok", report
    assert {one["check"] for one in report.checks if one["result"] == "passed"} >= {
        *("structure", "signature", "qualifying-data", "pcr-selection", "log", "ima")
    }
    assert [one["check"] for one in report.checks if one["result"] == "unchecked"] == ["ak-attributes"]
    assert report.quote["reset_count"] == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attest": b"\xff" * 100}, "magic"),
        ({"attest": b""}, "malformed"),
        ({"ak": b"-----BEGIN PUBLIC KEY-----\n"}, "malformed"),
        ({"ak": bytes(100)}, "malformed"),
        ({"ak": bytes(offline.MAX_KEY + 1)}, "malformed"),
        ({"signature": b"\0\x18\0\x0b"}, "malformed"),
        ({"signature": boot_logs.read("uki/quote.sig")}, "signature"),
        ({"signature": b"\0\x18\0\x04" + boot_logs.read("shim-grub/quote.sig")[4:]}, "scheme"),
        ({"nonce": b"other"}, "qualifying-data"),
        ({"pcrs": boot_logs.read("uki/quote.pcr")}, "pcr-selection"),
        ({"pcrs": bytes(32 * 14)}, "pcr-digest"),
        ({"pcrs": b"nonsense"}, "malformed"),
        ({"logs": logs("shim-grub", boot=logs("uki").boot)}, "log-mismatch"),
        ({"logs": logs("shim-grub", boot=logs("uki").boot), "pcrs": b""}, "log-mismatch"),
        ({"logs": logs("shim-grub", boot=logs("shim-grub").boot[:-1])}, "log-malformed"),
        ({"logs": logs("shim-grub", ima=logs("uki").ima)}, "ima-mismatch"),
        ({"logs": logs("shim-grub", ima=b"\0")}, "ima-malformed"),
    ],
)
def test_what_is_wrong_is_told(changes: dict, code: str) -> None:
    report = verify("shim-grub", **changes)
    assert report.code == code and report.reason
    assert report.result()["valid"] is False
    assert [one["result"] for one in report.checks][-1:] == ["failed"]


def test_without_a_nonce_and_values_it_says_so() -> None:
    report = verify("shim-grub", nonce=None, pcrs=b"", logs=None)
    assert report.code == "ok"
    assert [one["check"] for one in report.checks if one["result"] == "unchecked"] == [
        *("ak-attributes", "qualifying-data", "pcr-digest")
    ]


def test_a_pcr_that_no_log_explains_is_told() -> None:
    report = verify("uki", logs=logs("uki", systemd=b"", ima=b""))
    assert report.code == "log-mismatch" and "PCR 11" in report.reason
    values = boot_logs.values("shim-grub")
    report = verify("shim-grub", logs=logs("shim-grub", ima=b""))
    assert report.code == "ok" and values
    assert "PCRs 10 have quoted values that no log explains" in report.checks[-1]["detail"]


def test_keys_of_the_tpm_tell_their_attributes(fake_tpm) -> None:
    attest = fake_tpm.attest(b"n" * 32)
    for ak in (fake_tpm.ak_public, struct.pack(">H", len(fake_tpm.ak_public)) + fake_tpm.ak_public):
        report = offline.verify_quote(attest, fake_tpm.sign(attest), ak, nonce=b"n" * 32)
        assert report.code == "ok" and report.checks[1]["result"] == "passed"
    free = bytearray(fake_tpm.ak_public)
    free[5] &= ~1  # not restricted: it signs anything
    assert offline.verify_quote(attest, fake_tpm.sign(attest), bytes(free)).code == "ak-attributes"


def test_a_signature_that_this_kind_of_key_can_not_make(fake_tpm, fake_rsa_tpm) -> None:
    attest = fake_tpm.attest(b"n" * 32)
    assert offline.verify_quote(attest, fake_tpm.sign(attest), fake_rsa_tpm.ek_public_pem()).code == "scheme"
    rsa = struct.pack(">HHH", 0x0014, 0x000B, 256) + bytes(256)
    assert offline.verify_quote(attest, rsa, fake_tpm.ek_public_pem()).code == "scheme"


def test_keys_that_no_tpm_attests_with() -> None:
    for form in (Encoding.PEM, Encoding.DER):
        ed = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(Malformed, match="neither RSA nor"):
            offline.key(ed)


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        (struct.pack(">IHB", 1, 0x0004, 3) + b"\xff\0\0", "sha1"),
        (struct.pack(">IHB", 1, 0x000B, 3) + b"\0\0\0", "no PCR"),
        (struct.pack(">IHB", 1, 0x000B, 4) + b"\0\0\0\1", "PCR 24"),
        (struct.pack(">I", 2) + (struct.pack(">HB", 0x000B, 3) + b"\xff\0\0") * 2, "twice"),
    ],
)
def test_selections(fake_tpm, selections: bytes, message: str) -> None:
    attest = fake_tpm.attest(b"n" * 32, selections=selections)
    report = offline.verify_quote(attest, fake_tpm.sign(attest), fake_tpm.ak_public)
    assert report.code == "pcr-selection" and message in report.reason


@pytest.mark.skipif(boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
def test_quotes_of_others() -> None:
    """Quotes of three banks and the boot log of a Google VM (RSA-2048, RSASSA) are verified; SHA-1 is refused."""
    folder = boot_logs.others()
    assert folder is not None
    data = json.loads((folder / "go-tpm-tools/gce-cos-85-no-nonce.json").read_text())
    codes = {}
    for quote in data["quotes"]:
        bank = {4: "sha1", 11: "sha256", 12: "sha384"}[quote["alg"]]
        pcrs = json.dumps({bank: quote["pcrs"]}).encode()
        report = offline.verify_quote(
            bytes.fromhex(quote["attest"]),
            bytes.fromhex(quote["sig"]),
            bytes.fromhex(data["ak_tpmt"]),
            pcrs=pcrs,
            logs=Logs(bytes.fromhex(data["eventlog"])),
        )
        codes[bank] = report.code
    assert codes["sha1"] == "pcr-selection"
    assert {code for bank, code in codes.items() if bank != "sha1"} == {"ok"}
    windows = json.loads((folder / "go-attestation/windows_gcp_shielded_vm.json").read_text())
    key = base64.b64decode(windows["AK"]["Public"])
    quote = windows["Quote"]
    report = offline.verify_quote(base64.b64decode(quote["Quote"]), base64.b64decode(quote["Signature"]), key)
    assert report.code in ("scheme", "pcr-selection")


def test_replay() -> None:
    found = offline.replay(logs("uki"))
    values = boot_logs.values("uki")
    assert {pcr: values[int(pcr)].hex() for pcr in found["banks"]["sha256"]} == found["banks"]["sha256"]
    assert {"10", "11", "15"} <= found["banks"]["sha256"].keys()
    assert found["ima"] == {"lines": 434, "violations": 0, "edited": []}
    assert found["events"][-1]["type"] == "systemd:phase"
    edited = logs("uki").ima.replace(b"/bin/busybox", b"/bin/nothing", 1)
    assert offline.replay(Logs(ima=edited))["ima"]["edited"] == [2]
    assert offline.replay(Logs(ima=boot_logs.read("shim-grub/ima_ascii_head.txt")))["ima"]["lines"] == 40


def test_forms_of_values() -> None:
    quote = structures.quote(boot_logs.read("shim-grub/quote.msg"))
    chosen = sorted(quote.selections[0][1])
    selections = [("sha256", chosen)]
    values = pcr_values.parse(boot_logs.read("shim-grub/quote.pcr"), selections)["sha256"]
    joined = b"".join(values[pcr] for pcr in chosen)
    assert hashlib.sha256(joined).digest() == quote.digest
    assert pcr_values.parse(joined, selections) == {"sha256": values}
    text = "  sha256:\n" + "".join(f"    {pcr:<2}: 0x{value.hex().upper()}\n" for pcr, value in values.items())
    assert pcr_values.parse(text.encode(), []) == {"sha256": values}
    shown = {"sha256": {str(pcr): value.hex() for pcr, value in values.items()}}
    for form in (shown, {"banks": shown, "events": []}):
        assert pcr_values.parse(json.dumps(form).encode(), []) == {"sha256": values}


@pytest.mark.parametrize(
    "raw",
    [
        *(b"x", b"\xff", b"{", b'{"sha256": 1}', b'{"sha256": {"0": 1}}', b'{"sha256": {"24": ""}}'),
        b'{"md5": {"0": ""}}',
        *(b"sha256:\n 0 : 0x00\n", b"sha256:\n 24 : 0x" + b"0" * 64, b"0 : 0x00", bytes(pcr_values.MAX_FILE + 1)),
        *(b"sha256:\n" + (b" 0 : 0x" + b"0" * 64 + b"\n") * 2, b"\xff" * 136, b"\1" + bytes(135)),
        *(bytes(132) + b"\1" + bytes(3) + b"\xff" + bytes(531), b"[" * 1000, b"{" * 100_000),
    ],
)  # fmt: skip
def test_values_that_are_none(raw: bytes) -> None:
    with pytest.raises(Malformed):
        pcr_values.parse(raw, [])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutations_of_files_are_told_apart_by_codes(data: st.DataObject) -> None:
    names = {"attest": "quote.msg", "signature": "quote.sig", "ak": "ak.pub", "pcrs": "quote.pcr"}
    field = data.draw(st.sampled_from(sorted(names)))
    genuine = boot_logs.read(f"shim-grub/{names[field]}")
    raw = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    report = verify("shim-grub", **{field: bytes(raw)}, logs=None)
    if field in ("attest", "signature") and bytes(raw) != genuine:
        assert report.code != "ok"


def test_a_tee_that_a_policy_demands_is_told_as_unchecked() -> None:
    """A TEE that the policy demands is reported as unchecked, because a quote alone can't prove it."""
    rules = boot_forge.policy("shim-grub", unchecked=[0, 1, 3, 5, 6, 14, 15])
    rules["tee"] = {"snp": {"measurements": ["00" * 48]}}
    report = verify("shim-grub", policy=policy.parse(rules))
    assert {"check": "tee-none", "result": "unchecked"}.items() <= next(
        one for one in report.checks if one["check"] == "tee-none"
    ).items()
    del rules["tee"]
    assert all(one["check"] != "tee-none" for one in verify("shim-grub", policy=policy.parse(rules)).checks)


def test_a_policy_whose_rule_rests_on_a_pcr_that_was_not_quoted() -> None:
    report = verify("uki", policy=policy.parse(boot_forge.policy("uki", unchecked=[0, 1, 3, 5, 6, 14, 15])))
    assert report.code == "policy-uncovered" and "PCR 12 proves it, and hosts don't quote that PCR" in report.reason


def test_policies() -> None:
    boot = "shim-grub"
    rules = boot_forge.policy(boot, unchecked=[0, 1, 3, 5, 6, 14, 15])

    def judged(rules: dict, **changes: Any) -> offline.Report:
        return verify(boot, policy=policy.parse(rules), **changes)

    report = judged(rules)
    assert report.code == "ok" and report.checks[-1]["detail"] == "the boot is as the policy says"
    assert judged(rules, pcrs=b"").code == "policy-uncovered"
    assert judged(rules, logs=logs(boot, boot=b"")).code == "log-none"
    assert judged({"version": 1}).code == "policy-none"
    rules["boot"]["command_lines"] = ["root=/dev/vda"]
    report = judged(rules)
    assert report.code == "command-line" and "boot with an allowed command line" in report.reason
    rules = boot_forge.policy(boot, unchecked=[0, 1, 3, 5, 6, 14, 15])
    report = judged({**rules, "ima": {"files": {}}})
    assert report.code == "ima-file" and "line 1" in report.reason
    found = [ima.file(entry) for entry in ima.parse(logs(boot).ima)]
    exclude = sorted({f"/{one.path.decode().split('/')[1]}*" for one in found[1:] if one})
    report = judged({**rules, "ima": {"exclude": exclude}})
    assert report.code == "ok" and report.checks[-1]["detail"].startswith("what ran after")
    assert judged({**rules, "ima": {}}, logs=logs(boot, ima=b"")).code == "ima-none"


@pytest.fixture(scope="module")
def runner() -> Any:
    opts = {**salt.config.DEFAULT_MASTER_OPTS, "runner_dirs": [str(ROOT / "_runners")], "extension_modules": ""}
    return salt.loader.LazyLoader([str(ROOT / "_runners")], opts, tag="runners", pack={"__salt__": {}})


def test_the_runner(runner: Any, tmp_path: Path) -> None:
    assert netspace.__version__
    folder = boot_logs.FIXTURES / "shim-grub"
    found = runner["netspace_attestation.replay"](str(folder / "binary_bios_measurements"))
    assert found["banks"]["sha256"]["7"] == boot_logs.values("shim-grub")[7].hex()
    files = {"msg": "quote.msg", "sig": "quote.sig", "ak": "ak.pub", "pcrs": "quote.pcr"}
    paths = {key: str(folder / name) for key, name in files.items()}
    verify = runner["netspace_attestation.verify_quote"]
    found = verify(**paths, nonce="00112233", log=str(folder / "binary_bios_measurements"))
    assert found["valid"] is True and found["code"] == "ok" and "retcode" not in found
    found = verify(**paths, nonce="aa")
    assert (found["valid"], found["code"], found["retcode"]) == (False, "qualifying-data", 1)
    rules = tmp_path / "policy.yaml"
    rules.write_text(json.dumps(boot_forge.policy("shim-grub")))
    log = str(folder / "binary_bios_measurements")
    assert verify(**paths, log=log, policy=str(rules))["code"] == "ok"
    rules.write_text("version: 1\nboot: {}\n")
    assert verify(**paths, log=log, policy=str(rules))["code"] == "policy-uncovered"
    rules.write_text("version: 1\nboot: {unchecked: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14]}\n")
    assert verify(**paths, log=log, policy=str(rules))["valid"] is True
    for wrong in ("version: 1\nbot: {}\n", "{", "a: [", "- 1\n"):
        rules.write_text(wrong)
        assert verify(**paths, log=log, policy=str(rules))["code"] == "input"
    (tmp_path / "empty").touch()
    for bad in ({"nonce": 112233}, {"nonce": "xyz"}, {"msg": "/nonexistent"}, {"sig": str(tmp_path / "empty")}):
        found = verify(**{**paths, **bad})
        assert (found["code"], found["retcode"]) == ("input", 1), bad
    for half in ({"certificate": paths["ak"]}, {"ca": paths["ak"]}, {"crl": paths["ak"]}):
        assert verify(**{**paths, **half})["code"] == "input"
    assert verify(**{**paths, "certificate": paths["ak"], "ca": paths["ak"]})["code"] == "ak-certificate"
    assert runner["netspace_attestation.replay"]()["code"] == "input"
    assert runner["netspace_attestation.replay"](paths["ak"])["code"] == "log-malformed"
