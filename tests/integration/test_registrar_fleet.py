"""A real master enrols real minions, each with a separate TPM, over Salt's bus."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from saltfactories.cli.run import SaltRun
from saltfactories.cli.salt import SaltCli
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout
from support.attestation.software_tpm import Factory, listening
from support.returns import times_without_text
from support.waiting import until

pytestmark = pytest.mark.root


@dataclass
class Fleet:
    """A master and two minions, ``a`` and ``b``, each with the socket of a TPM.

    Each TPM has an endorsement certificate by a different maker. The master trusts only the maker of ``a``'s TPM
    (*roots*).

    :param makers: the certificates of each TPM's maker.
    """

    run: SaltRun
    minions: dict[str, str]
    pillar: Path
    sockets: dict[str, Path]
    cli: SaltCli
    roots: Path
    makers: dict[str, Path]
    started: bool = False
    also: dict[str, Any] = field(default_factory=dict)

    def runner(self, function: str, *arguments: str) -> tuple[dict[str, Any], int]:
        done = self.run.run(f"netspace_attestation.{function}", *arguments)
        assert isinstance(done.data, dict), done
        assert not list(times_without_text(f"netspace_attestation.{function}", done.data)), function
        return done.data, done.returncode

    def give(self, **tpms: str) -> None:
        """Declare the TPM that each minion uses."""
        for name, tpm in tpms.items():
            chosen = {"tpm": f"swtpm:path={self.sockets.get(tpm, tpm)}", **self.also}
            declared = {"netspace": {"attestation": chosen}}
            (self.pillar / f"{name}.sls").write_text(json.dumps(declared))
            if self.started:
                done = self.cli.run("saltutil.refresh_pillar", "wait=True", minion_tgt=self.minions[name])
                assert done.data is True, done


@pytest.fixture(scope="module")
def sockets(makers: dict[str, Factory]) -> Iterator[dict[str, Path]]:
    pytest.importorskip("tpm2_pytss", reason="pip install tpm2-pytss")
    folder = Path(tempfile.mkdtemp(prefix="swtpm"))  # short: a socket's path has 107 bytes
    running = []
    try:
        for name in ("a", "b"):
            shutil.copytree(makers[name].state, folder / f"{name}.state")
            command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
            command += ["--server", f"type=unixio,path={folder / name}"]
            command += ["--ctrl", f"type=unixio,path={folder / name}.ctrl"]
            command += ["--tpmstate", f"dir={folder / name}.state"]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: all(listening(folder / name) for name in ("a", "b")), "swtpm did not start")
        yield {name: folder / name for name in ("a", "b")}
    finally:
        for one in running:
            one.kill()
            one.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fleet(
    salt_factories: FactoriesManager,
    tmp_path_factory: pytest.TempPathFactory,
    sockets: dict[str, Path],
    makers: dict[str, Factory],
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("registrar")
    names = {"a": random_string("a-"), "b": random_string("b-")}
    # Not the same twice: another run may be beside this one, and /var/lib is the machine's.
    instances = {name: f"fleet{name}{secrets.token_hex(4)}" for name in names}
    pillar = folder / "pillar"
    pillar.mkdir()
    top = {"base": {names["a"]: ["a"], names["b"]: ["b"]}}
    (pillar / "top.sls").write_text(json.dumps(top))
    master = salt_factories.salt_master_daemon(
        random_string("master-"),
        overrides={
            "interface": "127.0.0.1",
            "worker_threads": 3,
            "file_roots": {"base": [str(checkout.ROOT / "states")]},
            "pillar_roots": {"base": [str(pillar)]},
            "runner_dirs": [str(checkout.ROOT / "_runners")],
            "utils_dirs": [str(checkout.ROOT / "_utils")],
            "netspace.attestation": {
                "folder": str(folder / "books"),
                "roots": str(shutil.copytree(makers["a"].roots, folder / "roots")),
                "timeout": 120,
                "jitter": 0,
                "groups": [{"name": "alpha", "match": ["a-*"], "minimum": "L2"}],
            },
        },
    )
    minions = {
        name: master.salt_minion_daemon(
            identity,
            overrides={"enable_fqdns_grains": False, "netspace.instance": instances[name], **checkout.in_place()},
        )
        for name, identity in names.items()
    }
    made = Fleet(
        master.salt_run_cli(timeout=300),
        names,
        pillar,
        sockets,
        master.salt_cli(timeout=120),
        folder / "roots",
        {name: one.roots for name, one in makers.items()},
    )
    made.give(a="a", b="b")
    with (
        master.started(start_timeout=120),
        minions["a"].started(start_timeout=120),
        minions["b"].started(start_timeout=120),
    ):
        made.started = True
        yield made
    for instance in instances.values():
        shutil.rmtree(f"/var/lib/{instance}", ignore_errors=True)


def test_a_fleet_is_enrolled_and_one_tpm_can_not_serve_two(fleet: Fleet) -> None:
    a, b = fleet.minions["a"], fleet.minions["b"]
    found, status = fleet.runner("enroll", a)
    assert (found["code"], status) == ("input", 1) and "ca_init" in found["reason"]
    found, status = fleet.runner("ca_init")
    assert status == 0 and found["ca"] == "CN=netspace Privacy CA"

    first, status = fleet.runner("enroll", a)
    assert status == 0 and first["level"] == "L3" and first["minion"] == a, first

    # b shows a's TPM: the master knows whose it is.
    fleet.give(b="a")
    found, status = fleet.runner("enroll", b)
    assert (found["code"], status) == ("ek-shared", 1), found

    fleet.give(b="b")
    second, status = fleet.runner("enroll", b)
    assert status == 0 and second["ek"] != first["ek"]
    assert second["level"] == "L2" and "does not chain to a root" in second["reason"], second
    assert second["pseudonym"] != first["pseudonym"]

    # a comes with another TPM than before.
    fleet.give(a="b")
    found, status = fleet.runner("enroll", a)
    assert (found["code"], status) == ("ek-changed", 1), found
    fleet.give(a="a")

    hosts, _ = fleet.runner("hosts")
    assert hosts == {a: first, b: second}
    found, status = fleet.runner("revoke", b, "why=stolen")
    assert status == 0 and found["serial"] == second["serial"]
    found, _ = fleet.runner("ca_crl")
    from cryptography import x509

    revoked = x509.load_pem_x509_crl(found["crl"].encode())
    assert [str(one.serial_number) for one in revoked] == [second["serial"]]

    found, status = fleet.runner("verify_log")
    assert status == 0 and found["valid"] is True and found["records"] == 7
    noted = found
    log = Path(fleet.run.config["netspace.attestation"]["folder"]) / "audit.log"
    assert b"PRIVATE" not in log.read_bytes()
    raw = log.read_bytes()
    log.write_bytes(raw.replace(b"stolen", b"sold.."))
    found, status = fleet.runner("verify_log")
    assert (found["code"], status) == ("audit-log", 1)
    log.write_bytes(b"".join(raw.splitlines(keepends=True)[:-1]))
    found, status = fleet.runner("verify_log", f"records={noted['records']}", f"hash={noted['hash']}")
    assert (found["code"], status) == ("audit-log", 1) and "ends here" in found["reason"]


def test_a_minion_that_is_not_there_or_is_a_pattern(fleet: Fleet) -> None:
    found, status = fleet.runner("enroll", "*")
    assert (found["code"], status) == ("input", 1) and "accepted no key" in found["reason"], found
