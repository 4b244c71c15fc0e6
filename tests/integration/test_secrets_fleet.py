"""A real master gives secrets to real minions, as its own results permit. No cache, log or disk contains a secret."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout
from support.attestation.software_tpm import Factory, listening
from support.hosts.whole_host import IDLE, IMAGE, python
from support.waiting import until

from netspace.environment.container import oci_runtime
from netspace.host.host import Host
from netspace.layout import Layout

pytestmark = pytest.mark.root
HIGH, LOW = secrets.token_hex(16), secrets.token_hex(16)


class Fleet:
    """A master and two minions: ``a`` has a TPM of a maker that the master trusts, ``b`` has none."""

    def __init__(self, folder: Path, socket: Path, roots: Path, salt_factories: FactoriesManager) -> None:
        self.folder, self.socket = folder, socket
        self.layouts = {name: Layout(f"{name}{secrets.token_hex(4)}") for name in ("a", "b")}
        self.ids = {name: random_string(f"{name}-") for name in self.layouts}
        self.store = folder / "store/sdb.yaml"
        self.store.parent.mkdir(mode=0o700)
        self.write(HIGH, LOW)
        self.declare()
        self.master = salt_factories.salt_master_daemon(
            random_string("master-"),
            overrides={
                "interface": "127.0.0.1",
                "worker_threads": 3,
                "log_level_logfile": "trace",
                "file_roots": {"base": [str(checkout.ROOT / "states")]},
                "runner_dirs": [str(checkout.ROOT / "_runners")],
                "pillar_dirs": [str(checkout.ROOT / "_pillar")],
                "utils_dirs": [str(checkout.ROOT / "_utils")],
                "ext_pillar": [{"netspace": str(folder / "fleet.yaml")}],
                "netspace.fleet": {"folder": str(folder / "facts")},
                "netspace.link": {"root": str(folder / "root")},
                "netspace.attestation": {"folder": str(folder / "books"), "roots": str(roots), "jitter": 0},
                "store": {"driver": "yaml", "files": [str(self.store)]},
            },
        )
        self.minions = {
            name: self.master.salt_minion_daemon(
                self.ids[name],
                overrides={
                    "enable_fqdns_grains": False,
                    "log_level_logfile": "trace",
                    "minion_pillar_cache": True,
                    "netspace.instance": layout.instance,
                    **checkout.in_place(),
                },
            )
            for name, layout in self.layouts.items()
        }

    def write(self, high: str, low: str) -> None:
        self.store.write_text(json.dumps({"high": high, "low": low}))

    def declare(self, **attestation: Any) -> None:
        common = {"image": f"tar:{IMAGE}", "command": python(IDLE), "limits": {"memory": "64M"}, "stop_timeout": 2}
        wanted = {"high": {"source": "sdb://store/high", "minimum": "L3"}, "low": "sdb://store/low"}
        tpm = {"tpm": f"swtpm:path={self.socket}"}
        hosts = {
            name: {
                "minion": self.ids[name],
                "instance": self.layouts[name].instance,
                "broker": {"authority": str(self.folder / f"authority-{name}")},
                "attestation": {**attestation, **(tpm if name == "a" else {})},
            }
            for name in self.layouts
        }
        environments = {f"web-{name}": {"on": name, **common, "secrets": wanted} for name in hosts}
        (self.folder / "fleet.yaml").write_text(json.dumps({"hosts": hosts, "environments": environments}))

    def runner(self, *words: str) -> Any:
        return self.master.salt_run_cli(timeout=300).run(*words).data

    def call(self, name: str, *words: str) -> Any:
        return self.master.salt_cli(timeout=300).run(*words, minion_tgt=self.ids[name]).data

    def apply(self, name: str) -> dict[str, Any]:
        self.call(name, "saltutil.refresh_pillar", "wait=True")
        found = self.call(name, "state.apply", "netspace.environments")
        assert isinstance(found, dict), found
        return {one["__id__"]: one for key, one in found.items() if key.endswith("-managed")}

    def secret(self, name: str, secret: str) -> str:
        """Return a secret as the program on a host reads it; empty if it can't."""
        words = ["/bin/cat", f"/run/netspace/secret.{secret}"]
        return str(Host(self.layouts[name]).operations.exec(f"web-{name}", words, timeout=60)["stdout"])

    def pid(self, name: str) -> int:
        """Return the PID of a host's program."""
        service = oci_runtime.service_name(f"web-{name}")
        found: int = Host(self.layouts[name]).supervisor.observe([service])[service].pid
        return found

    def hits(self, *words: str) -> list[str]:
        """Return the files of the fleet, and of the machine's caches and logs, that contain one of *words*.

        The store of secrets is left out, and so is the memory of the hosts a and b.
        """
        states = [layout.state for layout in self.layouts.values()] + [layout.logs for layout in self.layouts.values()]
        roots = [Path(self.master.config["root_dir"]), *(Path(one.config["root_dir"]) for one in self.minions.values())]
        found = set()
        for folder in {self.folder, *roots, *states, Path("/var/cache"), Path("/var/log")}:
            for path in folder.rglob("*") if folder.is_dir() else ():
                if path == self.store or not path.is_file() or path.is_symlink():
                    continue
                content = path.read_bytes()
                if any(word.encode() in content for word in words):
                    found.add(str(path))
        return sorted(found)


@pytest.fixture(scope="module")
def fleet(
    salt_factories: FactoriesManager, tmp_path_factory: pytest.TempPathFactory, makers: dict[str, Factory]
) -> Iterator[Fleet]:
    pytest.importorskip("tpm2_pytss", reason="pip install tpm2-pytss")
    place = Path(tempfile.mkdtemp(prefix="swtpm"))
    shutil.copytree(makers["a"].state, place / "state")
    command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
    command += ["--server", f"type=unixio,path={place}/a", "--ctrl", f"type=unixio,path={place}/a.ctrl"]
    command += ["--tpmstate", f"dir={place}/state"]
    tpm = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path_factory.mktemp("fleet")
    made = Fleet(folder, place / "a", makers["a"].roots, salt_factories)
    try:
        until(lambda: listening(place / "a"), "swtpm did not start")
        a, b = made.minions.values()
        with made.master.started(start_timeout=120), a.started(start_timeout=120), b.started(start_timeout=120):
            yield made
    finally:
        for layout in made.layouts.values():
            Host(layout).teardown()
            shutil.rmtree(layout.state, ignore_errors=True)
        tpm.kill()
        shutil.rmtree(place, ignore_errors=True)


def test_master_gives_a_secret_to_a_host_of_its_level(fleet: Fleet) -> None:
    fleet.runner("netspace_attestation.ca_init")
    (key,) = fleet.runner("netspace_attestation.jwks")["keys"]
    fleet.declare(verifier="master", verifier_keys=[key["kid"]])
    joined = fleet.runner("netspace_fleet.join", "a", "b")
    # b has no TPM, so its key for secrets is in a file.
    assert "tpm" in json.dumps(joined) and "software" in json.dumps(joined), joined
    for name in fleet.layouts:
        fleet.call(name, "saltutil.refresh_pillar", "wait=True")
        fleet.call(name, "state.apply", "netspace.attestation")
    judged = fleet.runner("netspace_attestation.attest", "*")
    levels = {name: judged[fleet.ids[name]]["level"] for name in fleet.layouts}
    assert levels == {"a": "L3", "b": "L1"}, judged

    state = fleet.apply("a")["netspace environments"]
    assert state["result"] is True, state
    assert (fleet.secret("a", "high"), fleet.secret("a", "low")) == (HIGH, LOW)
    state = fleet.apply("b")["netspace environments"]
    assert state["result"] is False and "secret high: needs trust level L3" in state["comment"], state
    assert (fleet.secret("b", "high"), fleet.secret("b", "low")) == ("", LOW)

    # What a minion claims changes nothing.
    fleet.call("b", "grains.set", "netspace:trust", "L5")
    pillar = fleet.call("b", "pillar.get", "netspace") or {}
    assert HIGH not in json.dumps(pillar) and "sdb://" not in json.dumps(pillar)

    # Rotated without a restart.
    before = fleet.pid("a")
    high = secrets.token_hex(16)
    fleet.write(high, LOW)
    state = fleet.apply("a")["netspace environments"]
    assert state["changes"] and high not in json.dumps(state), state
    assert fleet.secret("a", "high") == high
    assert fleet.pid("a") == before
    state = fleet.apply("a")["netspace environments"]
    assert state["result"] is True and not state["changes"], state

    # The master can't read its store: nothing is lost.
    fleet.store.rename(fleet.store.with_suffix(".away"))
    fleet.apply("a")
    assert fleet.secret("a", "high") == high
    fleet.store.with_suffix(".away").rename(fleet.store)

    assert not fleet.hits(HIGH, LOW, high)
    leak = Path(fleet.master.config["root_dir"]) / "leak.p"
    leak.write_text(f"x{high}x")
    assert fleet.hits(HIGH, LOW, high) == [str(leak)], "the search finds a leak"
    leak.unlink()

    # Revoked: the master gives none any more, and the host withdraws what it has.
    fleet.runner("netspace_attestation.revoke", fleet.ids["a"])
    fleet.apply("a")
    assert (fleet.secret("a", "high"), fleet.secret("a", "low")) == ("", "")
