"""A real master passes the seals of two real minions between them, by the runner over Salt's bus."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout

from netspace.layout import Layout
from netspace.link.pki import authority
from netspace.link.pki.root import Root, adopt, request
from netspace.link.record import Record, write
from netspace.link.seal import bundle, endorser, keys
from netspace.spec import hosts as words
from netspace.spec.types import Link, LocalBroker, RemoteHost

pytestmark = pytest.mark.root

HOSTS = ("h1", "h2")
LINK = Link(source="web@h1", target="vault@h2", pattern="request", seal=True)


class Fleet:
    """A master and two minions, each with its own instance. Links are only recorded as applied: there is no broker."""

    def __init__(self, folder: Path, salt_factories: FactoriesManager) -> None:
        source = checkout.copy(folder / "source")
        self.layouts = {name: Layout(f"{name}{secrets.token_hex(4)}") for name in HOSTS}
        self.master = salt_factories.salt_master_daemon(
            random_string("master-"),
            overrides={
                "interface": "127.0.0.1",
                "file_roots": {"base": [str(source)]},
                "runner_dirs": [str(source / "_runners")],
                "utils_dirs": [str(source / "_utils")],
            },
        )
        self.minions = {
            name: self.master.salt_minion_daemon(
                random_string(f"{name}-"),
                overrides={"enable_fqdns_grains": False, "netspace.instance": layout.instance},
            )
            for name, layout in self.layouts.items()
        }
        root = Root(folder / "root")
        root.make("root")
        for name, layout in self.layouts.items():
            adopt(folder / name, root.certify(request(folder / name), f"{name}.example.org"))
            broker = self.broker(folder, name)
            links = words.local([LINK], broker)
            write(layout, Record(broker, {link.name: link for link in links}))
            authority.ensure(layout, broker, time.time())

    def broker(self, folder: Path, name: str) -> LocalBroker:
        (other,) = set(HOSTS) - {name}
        return LocalBroker(
            host=name,
            listen="198.51.100.1:5671",
            trust_domain=f"{name}.example.org",
            authority=str(folder / name),
            names_key=str(folder / "names.key"),
            hosts={other: RemoteHost(trust_domain=f"{other}.example.org", address="198.51.100.2:5671")},
        )

    def exchange(self, *arguments: str) -> Any:
        return self.master.salt_run_cli(timeout=120).run("netspace_link.exchange_seals", *arguments)


@pytest.fixture(scope="module")
def fleet(salt_factories: FactoriesManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"), salt_factories)
    h1, h2 = made.minions.values()
    try:
        with made.master.started(start_timeout=120), h1.started(start_timeout=120), h2.started(start_timeout=120):
            cli = made.master.salt_cli(timeout=120)
            assert cli.run("saltutil.sync_all", minion_tgt="*").returncode == 0
            yield made
    finally:
        for layout in made.layouts.values():
            shutil.rmtree(layout.state, ignore_errors=True)


def test_each_hears_of_the_other_and_the_second_time_there_is_no_news(fleet: Fleet) -> None:
    done = fleet.exchange()
    assert done.returncode == 0, done
    assert done.data == {"exchanged": {"h1": ["h2"], "h2": ["h1"]}, "problems": []}
    for name, other, environment in (("h1", "h2", "vault"), ("h2", "h1", "web")):
        heard = bundle.read_all(fleet.layouts[name])[other]
        own = endorser.read(fleet.layouts[name])
        assert own is not None and heard.knows == own.kid
        theirs = keys.read_all(fleet.layouts[other])[environment]
        assert [key["kid"] for key in heard.keys[environment]] == [theirs[1]["kid"]]
    again = fleet.exchange()
    assert (again.returncode, again.data) == (0, {"exchanged": {}, "problems": []})


def test_what_lacks_is_told_and_the_exit_status_says_so(fleet: Fleet) -> None:
    alone = fleet.exchange(fleet.minions["h1"].id)
    assert alone.returncode == 1, alone
    assert "has sealed links with h2, which is no minion that answers" in alone.data["problems"][0]
    nobody = fleet.exchange("nobody")
    assert (nobody.returncode, nobody.data["problems"]) == (1, ["no minion answers"])
    # A host that refuses is told by name; the other one is served.
    fleet.layouts["h1"].records("bundles").joinpath("h2.json").write_text("{")
    damaged = fleet.exchange()
    assert damaged.returncode == 1
    assert fleet.minions["h1"].id in damaged.data["problems"][0]
    fleet.layouts["h1"].records("bundles").joinpath("h2.json").unlink()
    # Which had said meanwhile that it knows nothing of the other any more.
    assert fleet.exchange().data == {"exchanged": {"h1": ["h2"], "h2": ["h1"]}, "problems": []}
