"""A real master and a real minion, on loopback: sync, call, and new library code without a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from saltfactories.cli.run import SaltRun
from saltfactories.cli.salt import SaltCli
from saltfactories.daemons.minion import SaltMinion
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout
from support.environments.image_files import member, sha256, tar

pytestmark = pytest.mark.root

DECLARATION = {"environments": {"web": {"image": "tar:/srv/web.tar", "limits": {"memroy": "1M"}}}}


@dataclass(frozen=True)
class Fleet:
    """A master with one minion."""

    source: Path
    cli: SaltCli
    runner: SaltRun
    minion: SaltMinion

    def call(self, function: str, *arguments: str, **options: Any) -> Any:
        done = self.cli.run(function, *arguments, minion_tgt=self.minion.id, **options)
        assert done.returncode == 0, done
        return done.data

    def fails(self, function: str, *arguments: str) -> Any:
        """Call a function that must report a problem by its return code."""
        done = self.cli.run(function, *arguments, minion_tgt=self.minion.id)
        assert done.returncode != 0, done
        return done.data

    def run(self, function: str, *arguments: str) -> Any:
        """Call a runner of the master."""
        done = self.runner.run(function, *arguments)
        assert done.returncode == 0, done
        return done.data


@pytest.fixture(scope="module")
def fleet(salt_factories: FactoriesManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    source = checkout.copy(folder / "source")
    (folder / "pillar").mkdir()
    (folder / "pillar" / "top.sls").write_text("base: {'*': [shop]}\n")
    (folder / "pillar" / "shop.sls").write_text(json.dumps({"netspace": DECLARATION}))
    master = salt_factories.salt_master_daemon(
        random_string("master-"),
        overrides={
            "interface": "127.0.0.1",
            "worker_threads": 3,
            "file_roots": {"base": [str(source), str(source / "states")]},
            "pillar_roots": {"base": [str(folder / "pillar")]},
            "fileserver_list_cache_time": 0,
            "runner_dirs": [str(source / "_runners")],
            "utils_dirs": [str(source / "_utils")],
            "netspace.link": {"root": str(folder / "link-root")},
        },
    )
    minion = master.salt_minion_daemon(random_string("minion-"), overrides={"enable_fqdns_grains": False})
    with master.started(start_timeout=120), minion.started(start_timeout=120):
        yield Fleet(source, master.salt_cli(timeout=60), master.salt_run_cli(timeout=60), minion)


@pytest.fixture(scope="module")
def synced(fleet: Fleet) -> dict[str, list[str]]:
    """Sync once for all tests that need no more: a sync asks the master for each of some hundred files."""
    brought: dict[str, list[str]] = fleet.call("saltutil.sync_all")
    return brought


def test_a_sync_brings_modules_states_and_grains(fleet: Fleet, synced: dict[str, list[str]]) -> None:
    assert "utils.netspace.__init__" in synced["utils"]
    for plugin, functions in checkout.plugins("_modules").items():
        found = set(fleet.call("sys.list_functions", plugin))
        assert {f"{plugin}.{function}" for function in functions} <= found
    assert "present" in fleet.call("grains.get", "tpm")


@pytest.mark.usefixtures("synced")
def test_states_read_the_minions_pillar(fleet: Fleet) -> None:
    # Salt 3008 masks pillar in what modules and states ask for: the error must show the real key.
    done = fleet.cli.run("state.apply", "netspace.links", "test=True", minion_tgt=fleet.minion.id)
    comments = [state["comment"] for state in done.data.values()]
    assert any("limits:memroy" in comment for comment in comments), done.data


@pytest.mark.usefixtures("synced")
def test_an_image_is_fetched_from_the_master_once(fleet: Fleet) -> None:
    archive = fleet.source / "images/a.tar"
    archive.parent.mkdir()
    archive.write_bytes(tar([member("motd", b"hello")]))
    single = ("state.single", "netspace_image.present", "name=tar:salt://images/a.tar")

    def present(*more: str) -> dict[str, Any]:
        (state,) = fleet.call(*single, *more).values()
        return state

    assert present("test=True")["result"] is None
    made = present()
    assert made["result"] is True, made
    digest = made["changes"]["digest"]["new"]
    assert present()["changes"] == {}
    archive.write_bytes(tar([member("motd", b"changed")]))
    changed = present()["changes"]
    assert changed["digest"]["old"] == digest
    assert changed["source"]["new"] == sha256(archive.read_bytes())
    cached = fleet.call("cp.list_minion")
    assert not [path for path in cached if path.endswith("a.tar")], "no second copy is kept"
    assert len(fleet.call("netspace_image.list")) == 2
    assert fleet.call("netspace_image.prune")["result"] is True
    assert fleet.call("netspace_image.list") == {}


@pytest.mark.usefixtures("synced")
def test_a_sync_makes_new_library_code_live_without_a_restart(fleet: Fleet) -> None:
    """A changed library is synced, and the minion runs it without a restart.

    Salt reloads plugins but keeps the imported library (salt#66354), so netspace has to reload it.
    """
    pid = fleet.minion.pid
    before = fleet.fails("netspace.check", f"declaration={json.dumps(DECLARATION)}")["problems"][0]["message"]
    assert before.startswith("unknown")

    library = fleet.source / "_utils" / "netspace" / "errors.py"
    library.write_text(library.read_text() + "\nProblem._asdict = lambda self: {'path': 'new', 'message': 'code'}\n")
    assert fleet.call("saltutil.sync_all")["utils"] == ["utils.netspace.errors"]

    after = fleet.fails("netspace.check", f"declaration={json.dumps(DECLARATION)}")["problems"][0]
    assert after == {"path": "new", "message": "code"}
    assert fleet.minion.is_running()
    assert fleet.minion.pid == pid


@pytest.mark.usefixtures("synced")
def test_a_minion_gets_an_authority_for_its_links_and_keeps_its_key(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    certify = ("netspace_link.certify", fleet.minion.id, "h1.example.org", f"folder={folder}")
    assert fleet.run(*certify) is True
    key = (folder / "authority.key").read_bytes()
    bundle = (folder / "authority.pem").read_text()
    shown = fleet.runner.run("netspace_link.root").stdout
    assert shown.count("BEGIN CERTIFICATE") == 1 and "PRIVATE" not in shown
    assert bundle.count("BEGIN CERTIFICATE") == 2
    assert fleet.run(*certify) is True  # for two more years
    assert (folder / "authority.key").read_bytes() == key
    public = fleet.call("netspace_link.public_key", f"folder={folder}")
    assert len(public) == 43 and fleet.call("netspace_link.public_key", f"folder={folder}") == public
    assert "PRIVATE KEY" in (folder / "names.key").read_text()
    done = fleet.runner.run("netspace_link.certify", fleet.minion.id, "no domain", f"folder={folder}")
    assert done.returncode == 1 and "is not a trust domain" in done.data["error"]
    done = fleet.runner.run("netspace_link.certify", "nobody", "h2.example.org", "timeout=2")
    assert done.returncode == 1 and "nobody: the master hasn't accepted its key" in done.data["error"]
