"""What demands trust runs only where it is; everything else runs all the same."""

from __future__ import annotations

import subprocess
import time

import pytest
from whole_host import IDLE, all_true, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def vault(image, **attestation):
    common = {"image": f"tar:{image}", "command": python(IDLE), "stop_timeout": 2}
    return {
        "attestation": attestation,
        "environments": {
            "plain": common,
            "vault": {**common, "attestation": {"policy": "require", "minimum": "L2"}},
        },
        "links": [{"from": "plain", "to": "vault", "pattern": "send"}],
    }


@pytest.fixture
def tpm(tmp_path):
    """A software TPM, on a socket of its own."""
    state, path = tmp_path / "state", tmp_path / "tpm.sock"
    state.mkdir()
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={path}",
         "--ctrl", f"type=unixio,path={path}.ctrl", "--flags", "not-need-init,startup-clear"]
    )  # fmt: skip
    for _ in range(100):
        if path.exists():
            break
        time.sleep(0.05)
    yield f"swtpm:path={path}"
    process.kill()
    process.wait()


def test_without_a_tpm_only_what_requires_one_is_withheld(salt, image):
    states = salt.apply(vault(image, policy="prefer", minimum="L3"))
    attestation = states["netspace attestation"]
    assert attestation["result"] is True
    assert "L1" in attestation["comment"] and "verifier: self" in attestation["comment"]
    environments = states["netspace environments"]
    assert environments["result"] is False
    assert "environment vault: needs trust level L2, this host has L1" in environments["comment"]
    links = states["netspace links"]
    assert links["result"] is False and "plain.vault" in links["comment"]
    listed = salt("netspace_environment.list")
    assert listed["plain"]["state"] == "running"
    assert listed.get("vault", {"state": "stopped"})["state"] == "stopped"
    assert salt("netspace_attestation.status")["level"] == "L1"


def test_a_host_that_must_be_trusted_and_is_not_says_so(salt, image):
    states = salt.apply(vault(image, policy="require", minimum="L3"))
    assert states["netspace attestation"]["result"] is False
    assert "needs trust level L3" in states["netspace attestation"]["comment"]
    assert salt("netspace_environment.list").get("plain", {"state": "stopped"})["state"] == "stopped"


def test_with_a_tpm_what_requires_it_runs_and_loses_it_with_the_tpm(salt, image, tpm):
    all_true(salt.apply(vault(image, policy="prefer", minimum="L2", tpm=tpm)))
    status = salt("netspace_attestation.status")
    assert (status["level"], status["verifier"]) == ("L2", "self")
    assert salt("netspace_environment.list")["vault"]["state"] == "running"
    again = salt.apply(vault(image, policy="prefer", minimum="L2", tpm=tpm))
    assert [state["changes"] for state in again.values()] == [{}] * 4

    # Without the TPM in the declaration, the host is L1 again, and the vault is stopped.
    lost = salt.apply(vault(image, policy="prefer", minimum="L2"))
    assert lost["netspace environments"]["result"] is False
    listed = salt("netspace_environment.list")
    assert listed["vault"]["state"] == "stopped" and listed["plain"]["state"] == "running"
