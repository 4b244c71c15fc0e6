"""An environment that demands trust runs only on a trusted host; everything else runs in any case."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from support.attestation.software_tpm import listening
from support.hosts import snapshot
from support.hosts.whole_host import IDLE, all_true, python, unfolded
from support.sampling import todays
from support.waiting import until

from netspace import library_copy
from netspace.attestation import result
from netspace.environment.storage import mounts
from netspace.layout import Layout
from netspace.supervision import definitions
from netspace.supervision.daemon.client import DaemonSupervisor

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

HTTPS = {"direction": "out", "cidr": "198.51.100.0/24", "port": 443}
SSH = {**HTTPS, "port": 22}


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
    """A software TPM on a separate socket."""
    state, path = tmp_path / "state", tmp_path / "tpm.sock"
    state.mkdir()
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={path}",
         "--ctrl", f"type=unixio,path={path}.ctrl", "--flags", "not-need-init,startup-clear"]
    )  # fmt: skip
    until(lambda: listening(path), "swtpm did not start")
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
    all_true(salt.apply(vault(image, policy="prefer", minimum="L2", tpm=tpm, ledger=True)))
    status = salt("netspace_attestation.status")
    assert (status["level"], status["verifier"]) == ("L2", "self")
    assert salt("netspace_environment.list")["vault"]["state"] == "running"
    kept = status["ledger"]
    assert set(kept["running"]) == {"plain", "vault"} and len(kept["declaration"]) == 64 and kept["lines"] >= 3
    again = salt.apply(vault(image, policy="prefer", minimum="L2", tpm=tpm, ledger=True))
    assert [state["changes"] for state in again.values()] == [{}] * 4
    assert salt("netspace.drift")["differences"] == []
    assert salt("netspace_attestation.status")["ledger"] == kept

    # Without the TPM in the declaration, the host is L1 again, and the vault is stopped.
    lost = salt.apply(vault(image, policy="prefer", minimum="L2"))
    assert lost["netspace environments"]["result"] is False
    listed = salt("netspace_environment.list")
    assert listed["vault"]["state"] == "stopped" and listed["plain"]["state"] == "running"

    # Nor does it start by hand, alone or beside another.
    started = salt.run("netspace_environment.start", "vault", "plain")
    assert started.returncode != 0
    assert "vault: needs trust level L2, this host has L1" in started.stderr
    assert "needs trust level L2" in salt.run("netspace_environment.restart", "vault").stderr
    listed = salt("netspace_environment.list")
    assert listed["vault"]["state"] == "stopped" and listed["plain"]["state"] == "running"


def test_attested_link_is_lost_and_restored_with_the_level(salt, image, tpm):
    def declared(**host):
        made = vault(image, policy="prefer", minimum="L1", **host)
        del made["environments"]["vault"]["attestation"]
        made["links"][0]["attested"] = "L2"
        return made

    all_true(salt.apply(declared(tpm=tpm)))
    said = salt("netspace.can", "plain", "vault")
    assert said["can"] is True and [one["what"] for one in said["rules"]] == ["messages, from a host of L2 or higher"]
    assert salt("netspace_link.list")["links"]["plain.vault"]["attested"] == "L2"
    assert [state["changes"] for state in salt.apply(declared(tpm=tpm)).values()] == [{}] * 4
    pids = {name: one["pid"] for name, one in salt("netspace_environment.list").items()}

    lost = salt.apply(declared())["netspace links"]
    assert lost["result"] is False and "the sender's host must have L2 (attested), this host has L1" in lost["comment"]
    assert salt("netspace_link.list")["links"] == {} and salt("netspace.can", "plain", "vault")["can"] is False
    all_true(salt.apply(declared(tpm=tpm)))
    assert set(salt("netspace_link.list")["links"]) == {"plain.vault"}
    assert {name: one["pid"] for name, one in salt("netspace_environment.list").items()} == pids, "nothing is restarted"


@pytest.mark.parametrize("on_loss", todays(["revoke-links", "report"], 2))
def test_what_runs_goes_on_where_the_loss_says_so_and_regaining_restores(salt, image, tpm, on_loss):
    def declared(**host):
        made = vault(image, policy="prefer", minimum="L2", **host)
        made["environments"]["vault"]["attestation"]["on_loss"] = on_loss
        return made

    def links():
        return set(salt("netspace_link.list")["links"])

    all_true(salt.apply(declared(tpm=tpm)))
    before = salt("netspace_environment.list")["vault"]
    assert before["state"] == "running" and links() == {"plain.vault"}

    # The TPM is gone: it runs on, nothing of it is changed, and the states say so.
    changed = declared()
    changed["environments"]["vault"]["command"] = python("import time; time.sleep(1e6)")
    changed["environments"]["other"] = changed["environments"]["vault"]
    for _ in range(2):
        states = salt.apply(changed)
        assert states["netspace environments"]["result"] is False and states["netspace links"]["result"] is False
        assert f"(on_loss: {on_loss})" in states["netspace environments"]["comment"]
    listed = salt("netspace_environment.list")
    assert (listed["vault"]["state"], listed["vault"]["pid"]) == ("running", before["pid"])
    assert listed.get("other", {"state": "stopped"})["state"] == "stopped", "what did not run is not started"
    assert links() == ({"plain.vault"} if on_loss == "report" else set())
    assert not states["netspace environments"]["changes"] and not states["netspace links"]["changes"]
    # Once stopped, it takes trust to start it.
    refused = salt.run("netspace_environment.restart", "vault")
    assert refused.returncode != 0 and "needs trust level L2" in refused.stderr
    assert salt("netspace_environment.list")["vault"]["state"] == "running"

    # Trust is back: so are its links, and nothing was restarted.
    all_true(salt.apply(declared(tpm=tpm)))
    after = salt("netspace_environment.list")["vault"]
    assert (after["state"], after["pid"]) == ("running", before["pid"]) and links() == {"plain.vault"}
    again = salt.apply(declared(tpm=tpm))
    assert [state["changes"] for state in again.values()] == [{}] * 4


def test_a_declared_stop_waits_for_no_trust(salt, image, tpm):
    declared = vault(image, policy="prefer", minimum="L2", tpm=tpm)
    wanted = declared["environments"]["vault"]
    wanted["attestation"]["on_loss"] = "report"
    all_true(salt.apply(declared))
    # The trust is lost, and what would run on is declared to be stopped: no state of it fails, also none that follows.
    del declared["attestation"]["tpm"]
    declared["links"] = []
    wanted["state"] = "stopped"
    for change in ({"old": "running", "new": "stopped"}, None):
        told = salt.apply(declared)["netspace environments"]
        assert told["result"] is True
        assert told["changes"].get("vault", {}).get("state") == change
        assert "environment vault: needs trust level L2, this host has L1" in told["comment"]
    assert salt("netspace_environment.list")["vault"]["state"] == "stopped"
    # A boot that is trusted less has nothing to say of it.
    layout = Layout()
    reboot(layout)
    done = subprocess.run(library_copy.command(layout, "restore"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # To run it takes the trust.
    del wanted["state"]
    told = salt.apply(declared)["netspace environments"]
    assert told["result"] is False and salt("netspace_environment.list")["vault"]["state"] == "stopped"


def test_what_runs_without_trust_is_not_made_anew_whatever_changes(salt, image, tpm, tmp_path):
    """On an untrusted host, an apply restarts no running program, and adds no rule to its interface.

    This holds if the declared image or hardening changes, and if the program's root file system is damaged.
    """
    own = shutil.copy(image, tmp_path / "vault.tar")
    wanted = vault(image, policy="prefer", minimum="L2", tpm=tpm)
    spec = wanted["environments"]["vault"]
    spec |= {"image": f"tar:{own}", "interface": {"kind": "veth", "allow": [HTTPS, SSH]}}
    spec["attestation"]["on_loss"] = "report"
    all_true(salt.apply(wanted))
    before = salt("netspace_environment.list")["vault"]
    layout = Layout()

    def allowed() -> list[int]:
        return [rule["port"] for rule in salt("netspace_interface.inspect", "vault")["declared"]["allow"]]

    del wanted["attestation"]["tpm"]
    with tarfile.open(own, "a") as archive:
        archive.addfile(tarfile.TarInfo("etc/new"))
    spec["interface"]["allow"] = [SSH, {**SSH, "port": 53}]
    record = layout.records("environments") / "vault.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "revision": "of an earlier version"}))
    (layout.bundle("vault") / "config.json").write_text("{}")
    for _ in range(2):
        states = salt.apply(wanted)
        failed = {name for name, state in states.items() if not state["result"]}
        assert failed == {"netspace links", "netspace environments"}
        assert "interface vault: its change waits for trust:" in states["netspace interfaces"]["comment"]
        waits = unfolded(states["netspace environments"]["comment"]).partition(
            "its restart waits until the host has the required trust ("
        )[2]
        assert {"image", "hardening"} <= set(waits.partition(";")[0].split(", ")), states
        now = salt("netspace_environment.list")["vault"]
        assert (now["state"], now["pid"], now["digest"]) == ("running", before["pid"], before["digest"])
        assert allowed() == [22]
    assert [state["changes"] for state in states.values()] == [{}] * 4
    subprocess.run(["ip", "netns", "del", layout.netns_name("vault")], check=True)
    salt.apply(wanted)
    assert salt("netspace_environment.list")["vault"]["pid"] == before["pid"]

    # What waited is done when the trust is back.
    wanted["attestation"]["tpm"] = tpm
    all_true(salt.apply(wanted))
    after = salt("netspace_environment.list")["vault"]
    assert after["state"] == "running" and after["pid"] != before["pid"] and after["digest"] != before["digest"]
    assert allowed() == [22, 53]


def reboot(layout):
    """Simulate a reboot: end processes, remove mounts and bundles, and invalidate the last appraisal."""
    wanted = definitions.desired(layout)
    names = list(DaemonSupervisor(layout).observe())
    assert DaemonSupervisor(layout).stop(names) == {}
    for pid, command in snapshot.processes().items():
        if command.rstrip().endswith(" supervise"):
            os.kill(pid, signal.SIGKILL)
            while os.path.exists(f"/proc/{pid}"):
                time.sleep(0.01)
    for name in names:
        definitions.remove_trace(layout, name)
    for target in mounts.table():
        if Path(target).is_relative_to(layout.run):
            mounts.unmount(Path(target))
    for folder in ("environments", "images", "crun"):
        shutil.rmtree(layout.run / folder)
    definitions.desire(layout, add=wanted)
    result.save(layout, dataclasses.replace(result.load(layout), boot="another"))


def test_after_a_boot_that_is_trusted_less_what_requires_more_does_not_start(salt, image, tpm):
    wanted = vault(image, policy="prefer", minimum="L2", tpm=tpm)
    all_true(salt.apply(wanted))
    layout = Layout()
    reboot(layout)
    socket = Path(tpm.partition("path=")[2])
    socket.rename(socket.with_suffix(".away"))
    done = subprocess.run(library_copy.command(layout, "restore"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "environments: vault: needs trust level L2, this host has L" in done.stderr
    # Its start is asked for, not waited for.
    until(lambda: salt("netspace_environment.list")["plain"]["state"] == "running", pause=0.2)
    listed = salt("netspace_environment.list")
    assert (listed["plain"]["state"], listed["vault"]["state"]) == ("running", "stopped")
    assert "environment-vault" not in definitions.desired(layout)
    assert not layout.bundle("vault").exists()

    # The TPM is back: so is the vault.
    socket.with_suffix(".away").rename(socket)
    salt("netspace_attestation.forget")
    all_true(salt.apply(wanted))
    assert salt("netspace_environment.list")["vault"]["state"] == "running"
