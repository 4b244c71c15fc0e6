"""netspace's verifier reads the files that tpm2-tools write, and names the faults in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
from support.attestation import boot_logs

ROOT = Path(__file__).parents[3]
NONCE = "8a1c0d5f3e92b7640f1e2d3c4b5a6978"
PCRS = "sha256:0,1,2,3,4,5,6,7"


class Tools:
    """The programs of tpm2-tools, run for one TPM in one folder."""

    def __init__(self, tcti: str, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TPM2TOOLS_TCTI": tcti}

    def __call__(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)

    def key(self, *algorithm: str, form: str = "tss") -> None:
        self("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-u", "ak.pub", "-f", form, *algorithm)
        self("tpm2_flushcontext", "-t")

    def quote(self, *more: str, pcrs: str = PCRS, nonce: str = NONCE) -> dict[str, str]:
        self("tpm2_quote", "-c", "ak.ctx", "-l", pcrs, "-q", nonce, "-m", "msg", "-s", "sig", "-o", "pcrs", *more)
        self("tpm2_flushcontext", "-t")
        return {name: str(self.folder / file) for name, file in FILES.items()}


FILES = {"msg": "msg", "sig": "sig", "ak": "ak.pub", "pcrs": "pcrs"}


@pytest.fixture
def tools(make_tpm: Callable, tmp_path: Path) -> Iterator[Tools]:
    for name in ("tpm2_quote", "tpm2_createak"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} missing: apt-get install tpm2-tools")
    made = Tools(make_tpm().tcti, tmp_path)
    made("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
    made("tpm2_flushcontext", "-t")
    return made


@pytest.fixture(scope="module")
def verify() -> Callable[..., dict[str, Any]]:
    runner = salt.loader.LazyLoader(
        [str(ROOT / "_runners")], dict(salt.config.DEFAULT_MASTER_OPTS), tag="runners", pack={"__salt__": {}}
    )
    return runner["netspace_attestation.verify_quote"]


@pytest.mark.parametrize(
    "algorithm",
    [
        ("-G", "ecc", "-g", "sha256", "-s", "ecdsa"),
        ("-G", "ecc384", "-g", "sha384", "-s", "ecdsa"),
        ("-G", "rsa", "-g", "sha256", "-s", "rsassa"),
        ("-G", "rsa", "-g", "sha256", "-s", "rsapss"),
        ("-G", "rsa3072", "-g", "sha384", "-s", "rsapss"),
    ],
    ids=lambda one: "-".join(one[1::2]),
)
def test_quotes_of_every_kind_of_key(tools: Tools, verify: Callable, algorithm: tuple[str, ...]) -> None:
    tools.key(*algorithm)
    found = verify(**tools.quote("-g", algorithm[3], "--scheme", algorithm[5]), nonce=NONCE)
    assert found["valid"] is True, found
    assert {one["check"] for one in found["checks"] if one["result"] == "passed"} == {
        *("structure", "ak-attributes", "signature", "qualifying-data", "pcr-selection", "pcr-digest")
    }


@pytest.mark.parametrize("form", ["pem", "der"])
def test_keys_in_other_forms(tools: Tools, verify: Callable, form: str) -> None:
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa", form=form)
    found = verify(**tools.quote(), nonce=NONCE)
    assert found["valid"] is True and found["checks"][1]["result"] == "unchecked"


def test_values_in_the_other_form(tools: Tools, verify: Callable) -> None:
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    assert verify(**tools.quote("-F", "values"), nonce=NONCE)["valid"] is True
    assert verify(**tools.quote(pcrs="sha256:0,1+sha384:0,1"), nonce=NONCE)["valid"] is True


def test_a_log_that_leads_to_what_was_quoted(tools: Tools, verify: Callable) -> None:
    """A boot log with the events that the TPM measured is accepted; after one more extension, it is refused.

    The code of the refusal is ``log-mismatch``.
    """
    from netspace.attestation.logs import eventlog

    raw = boot_logs.FIXTURES / "uki/binary_bios_measurements"
    events = [event for event in eventlog.parse(raw.read_bytes()).events if event.type != eventlog.NO_ACTION]
    for event in events:
        tools("tpm2_pcrextend", f"{event.pcr}:sha256={event.digests['sha256'].hex()}")
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    files = tools.quote(pcrs="sha256:0,1,2,3,4,5,6,7,9,11")
    assert verify(**files, nonce=NONCE, log=str(raw))["valid"] is True
    without = {key: value for key, value in files.items() if key != "pcrs"}
    assert verify(**without, nonce=NONCE, log=str(raw))["valid"] is True
    tools("tpm2_pcrextend", "7:sha256=" + "00" * 32)
    found = verify(**tools.quote(pcrs="sha256:0,1,2,3,4,5,6,7,9,11"), nonce=NONCE, log=str(raw))
    assert found["code"] == "log-mismatch" and "PCR 7" in found["reason"]


def test_what_is_wrong_is_named(tools: Tools, verify: Callable) -> None:
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    files = tools.quote()
    assert verify(**files, nonce="00" * 16)["code"] == "qualifying-data"
    tools("tpm2_quote", "-c", "ak.ctx", "-l", "sha1:0", "-q", NONCE, "-m", "msg1", "-s", "sig1")
    assert verify(**{**files, "msg": str(tools.folder / "msg1"), "sig": str(tools.folder / "sig1")})["code"] == (
        "pcr-selection"
    )
    assert verify(**{**files, "sig": str(tools.folder / "sig1")})["code"] == "signature"
    tools("tpm2_flushcontext", "-t")
    tools("tpm2_pcrextend", "3:sha256=" + "aa" * 32)
    tools("tpm2_pcrread", PCRS, "-o", "raw")
    (tools.folder / "later").write_bytes((tools.folder / "raw").read_bytes())
    assert verify(**{**files, "pcrs": str(tools.folder / "later")})["code"] == "pcr-digest"
    tools("tpm2_createprimary", "-C", "e", "-c", "primary.ctx")
    tools("tpm2_create", "-C", "primary.ctx", "-G", "ecc:ecdsa-sha256", "-u", "free.pub", "-r", "free.priv")
    assert verify(**{**files, "ak": str(tools.folder / "free.pub")})["code"] == "ak-attributes"


def test_what_a_tpm_signs_besides_quotes_is_no_quote(tools: Tools, verify: Callable) -> None:
    tools.key("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
    tools("tpm2_gettime", "-c", "ak.ctx", "-q", NONCE, "--attestation", "time", "-o", "sigt")
    found = verify(msg=str(tools.folder / "time"), sig=str(tools.folder / "sigt"), ak=str(tools.folder / "ak.pub"))
    assert found["code"] == "type"
