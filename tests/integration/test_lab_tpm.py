"""A lab whose hosts have TPMs, by the lines of ``docs/lab.md``: from nothing to a sealed link, and a host replaced.

A real master accepts the minions' pending keys by their TPMs, and refuses a false claim.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import checkout, pages
from support.hosts import as_written
from support.hosts.lab import LAB, Lab
from support.hosts.lab import lab as lab_of
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/lab.md"
TOUR = "Ten minutes to attested hosts and a sealed link"
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
        typed(made, TOUR)
        yield made


def typed(lab: Lab, section: str) -> None:
    """Type the lines of a section of the page, and compare what they print."""
    line, printed = list[str](), ""
    for step in pages.steps(as_written.section(PAGE, section)):
        if step.kind == "text":
            compare(lab, line, printed, step.text)
            continue
        for text in pages.commands(step.text):
            line = shlex.split(text, comments=True)
            assert line[:2] == ["sudo", "scripts/lab"], text
            printed = said(lab, line)
            if line[2] == "up":
                lab.warm()


def said(lab: Lab, line: list[str]) -> str:
    """Type a line; return what it prints. Only a question to ``orders`` may fail."""
    done = subprocess.run(
        [LAB, *line[2:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=lab.environment, timeout=900
    )
    assert done.returncode == 0 or "/usr/bin/web" in line[-1], f"{line}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def compare(lab: Lab, line: list[str], printed: str, text: str) -> None:
    """Check that *line* has printed the lines of *text*. A question is asked again, as the page says."""
    if pages.lacking(text, printed) is not None:
        assert "/usr/bin/web" in line[-1], f"{line}: {pages.lacking(text, printed)} was not printed: {printed}"
        until(lambda: pages.lacking(text, said(lab, line)) is None, text, patience=300)


def test_the_tour_ends_with_a_sealed_link(lab: Lab) -> None:
    (declared,) = re.findall(r"^```yaml\n(.*?)^```", as_written.section(PAGE, TOUR), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(declared) == yaml.safe_load(lab.fleet.read_text())
    levels = {host: lab.salt(host, "netspace_attestation.status")[host]["level"] for host in ("h1", "h2")}
    assert levels == {"h1": "L3", "h2": "L3"}, "the hosts know the TPMs' maker"
    assert lab.apply() == 0


def test_a_pending_key_is_accepted_by_its_tpm_alone(lab: Lab) -> None:
    def admissions(event: str) -> list[str]:
        lines = (lab.folder / "master/attestation/audit.log").read_text().splitlines()
        return [one["data"]["minion"] for one in map(json.loads, lines) if one["event"] == event]

    def keys(folder: str) -> list[str]:
        return sorted(path.name for path in (lab.folder / "master/pki" / folder).iterdir())

    assert keys("minions") == ["h1", "h2"] == admissions("admission")
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
        assert keys("minions") == ["h1", "h2"] and keys("minions_pre") == ["h7"]
        assert admissions("admission-refused") == ["h7"]
    finally:
        inventory.write_text(listed)
        (lab.folder / "master/pki/minions_pre/h7").unlink()
        lab.do("sh", "h1", "rm", "-r", "/run/liar")


def test_a_host_with_a_tpm_is_replaced_by_the_page(lab: Lab) -> None:
    before = (lab.folder / "master/tpms").read_text()
    typed(lab, "Replace a host")
    assert (lab.folder / "master/tpms").read_text() != before, "another TPM"
    until(lambda: "sealed order of 6 nuts" in lab.asks("6 nuts"), "orders answers again", patience=300)
    assert lab.runner("netspace_fleet.replace", "h2") == {"h2": {"changes": {}, "missing": []}}


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
