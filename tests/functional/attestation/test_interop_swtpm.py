"""Three verifiers of one TPM's quotes: netspace's result equals those of tpm2_checkquote and Keylime."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tpm2_tools_swtpm import NONCE, ROOT, Tools, tools, verify

__all__ = ["tools", "verify"]

# Run by Keylime's interpreter: its own check of a quote. Tpm.check_quote(), one layer up, is of no use: in 7.14.3 it
# takes an exception without a text, as cryptography's InvalidSignature is one, for success.
KEYLIME = """
import base64, json, sys
from keylime.tpm import tpm2_objects, tpm_util
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
found = []
for quote in json.load(open(sys.argv[1])):
    msg, sig, pcrs, ak = (base64.b64decode(quote[name]) for name in ("msg", "sig", "pcrs", "ak.pub"))
    key = tpm2_objects.pubkey_from_tpm2b_public(ak).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        found.append(len(tpm_util.checkquote(key, quote["nonce"], sig, msg, pcrs, "sha256")) == 8)
    except Exception as err:
        found.append(False)
json.dump(found, sys.stdout)
"""


BLOBS = ("msg", "sig", "pcrs", "ak.pub")


def damaged(path: Path, at: int) -> bytes:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    return bytes(raw)


@pytest.fixture
def quotes(tools: Tools) -> dict[str, dict[str, Any]]:
    """Quotes by their fault, each with its files' contents and the expected nonce."""
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    tools("tpm2_readpublic", "-c", "ak.ctx", "-f", "pem", "-o", "ak.pem")
    nonce = NONCE.encode().hex()
    tools.quote(nonce=nonce)
    files = {name: (tools.folder / name).read_bytes() for name in ("msg", "sig", "pcrs", "ak.pub", "ak.pem")}
    right = {**files, "nonce": NONCE}
    found = {
        "": right,
        "nonce": {**right, "nonce": NONCE[:-1] + "9"},
        "msg": {**right, "msg": damaged(tools.folder / "msg", -1)},
        "sig": {**right, "sig": damaged(tools.folder / "sig", -1)},
        "pcrs": {**right, "pcrs": damaged(tools.folder / "pcrs", files["pcrs"].index(bytes(32)))},
    }
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    tools("tpm2_readpublic", "-c", "ak.ctx", "-f", "pem", "-o", "other.pem")
    found["key"] = {
        **right,
        "ak.pub": (tools.folder / "ak.pub").read_bytes(),
        "ak.pem": (tools.folder / "other.pem").read_bytes(),
    }
    assert found["key"]["ak.pem"] != files["ak.pem"]
    return found


def ours(verify: Callable[..., dict[str, Any]], folder: Path, quote: dict[str, Any]) -> bool:
    return bool(verify(**written(folder, quote), nonce=quote["nonce"].encode().hex())["valid"])


def written(folder: Path, quote: dict[str, Any]) -> dict[str, str]:
    names = {"msg": "msg", "sig": "sig", "pcrs": "pcrs", "ak": "ak.pub"}
    for name in (*names.values(), "ak.pem"):
        (folder / name).write_bytes(quote[name])
    return {key: str(folder / name) for key, name in names.items()}


def test_ours_and_tpm2_checkquote_agree(quotes: dict[str, Any], verify: Callable, tmp_path: Path) -> None:
    if shutil.which("tpm2_checkquote") is None:
        pytest.skip("tpm2_checkquote missing: apt-get install tpm2-tools")
    for wrong, quote in quotes.items():
        said = ours(verify, tmp_path, quote)
        command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "msg", "-s", "sig", "-f", "pcrs", "-g", "sha256"]
        command += ["-q", quote["nonce"].encode().hex()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert said == (done.returncode == 0) == (not wrong), (wrong, said, done.stderr)


def test_ours_and_keylime_agree(quotes: dict[str, Any], verify: Callable, tmp_path: Path) -> None:
    keylime = Path(os.environ.get("NETSPACE_KEYLIME") or ROOT / ".cache/keylime/bin/python")
    if not keylime.exists():
        pytest.skip(f"{keylime} missing: a venv with Keylime, see benchmarks/attestation.py")
    asked = [
        {"nonce": quote["nonce"], **{name: base64.b64encode(quote[name]).decode() for name in BLOBS}}
        for quote in quotes.values()
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [keylime, "-c", KEYLIME, tmp_path / "asked.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [ours(verify, tmp_path, quote) for quote in quotes.values()]
    assert said == json.loads(done.stdout) == [not wrong for wrong in quotes], list(quotes)
