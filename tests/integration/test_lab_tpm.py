"""A lab whose host has a TPM: a real master accepts the minion's pending key by its TPM, and refuses a false claim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts.lab import Lab
from support.hosts.lab import lab as lab_of

pytestmark = pytest.mark.root

ADMISSION = "http://198.51.100.254:4507"
TPM = "swtpm:path=/run/tpm.sock"
LIAR = """
mkdir -p /run/liar && cd /run/liar
python3 - <<END
import json, os
found = json.load(open(os.path.join(os.environ["SALT_CONFIG_DIR"], "minion")))
own = {"id": "h7", "root_dir": "/run/liar", "pki_dir": "/run/liar/pki", "cachedir": "/run/liar/cache",
       "sock_dir": "/run/liar/sock", "log_file": "/run/liar/log", "pidfile": "/run/liar/pid"}
json.dump(found | own, open("/run/liar/minion", "w"))
END
salt-call --config-dir=/run/liar test.ping  # so its key is pending
"""
"""On a host: begin to be the minion h7."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_of(tmp_path_factory.mktemp("lab") / "lab") as made:
        assert "h1: its key is accepted by its TPM" in made.do("up", "--hosts", "1", "--tpm", "1")
        yield made


def test_a_pending_key_is_accepted_by_its_tpm_alone(lab: Lab) -> None:
    def admissions(event: str) -> list[str]:
        lines = (lab.folder / "master/attestation/audit.log").read_text().splitlines()
        return [one["data"]["minion"] for one in map(json.loads, lines) if one["event"] == event]

    def keys(folder: str) -> list[str]:
        return sorted(path.name for path in (lab.folder / "master/pki" / folder).iterdir())

    assert keys("minions") == ["h1"] and admissions("admission") == ["h1"]
    # Somebody with root on h1 starts a minion under the name of a host that is still to come, and applies by h1's TPM.
    inventory = lab.folder / "master/tpms"
    listed = inventory.read_text()
    inventory.write_text(f"{listed}h7 {'0' * 64}\n")
    try:
        lab.do("sh", "h1", "bash", "-c", f"{LIAR} true")
        assert keys("minions_pre") == ["h7"]
        apply = ("salt-call", "--config-dir=/run/liar", "--local", "netspace_admission.apply", ADMISSION, f"tpm={TPM}")
        refused = lab.do("sh", "h1", *apply, code=1)
        assert "by the inventory, the TPM" in refused and "is h1, not h7's" in refused, refused
        inventory.write_text(listed)
        assert "the inventory does not name h7" in lab.do("sh", "h1", *apply, code=1), "heard after a pause"
        assert keys("minions") == ["h1"] and keys("minions_pre") == ["h7"]
        assert admissions("admission-refused") == ["h7"]
    finally:
        inventory.write_text(listed)
        (lab.folder / "master/pki/minions_pre/h7").unlink()
        lab.do("sh", "h1", "rm", "-r", "/run/liar")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tpm", "3"), "--tpm 3 is not between 1 and the number of hosts"),
        (("--tpm", "0"), "--tpm 0 is not between 1 and the number of hosts"),
        (("--hosts", "2", "--tpm", "1", "fleet.yaml"), "--hosts is for the default fleet"),
        (("--tpm", "1", "fleet.yaml"), "--tpm is for a new lab with the default fleet"),
    ],
)
def test_a_number_of_tpms_that_can_not_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    refused = Lab(tmp_path / "lab")
    assert message in refused.do("up", *arguments, code=1)
    assert not refused.folder.exists()
