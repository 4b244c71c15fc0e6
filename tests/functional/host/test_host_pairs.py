"""From any declaration to any other in one apply: the host is then as if only the second had ever been declared.

Each pair of declarations is tried so: the second from nothing, which shows how the host is to look; the first from
nothing; the second over the first; the first again. Each apply succeeds at once, and leaves nothing to do, nothing of
the one before, nothing of another's touched.

``NETSPACE_PAIRS`` is the number of pairs, ``NETSPACE_SEED`` the seed of the first one, by default the number of the
day. A failure prints the seed of its pair, which repeats it alone: ``NETSPACE_PAIRS=1 NETSPACE_SEED=...``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts import faultpoints, faults_host
from support.hosts.declared_pairs import BRIDGE, PARENT, Chooser, Declared
from support.hosts.faults_host import LAYOUT, TAG, World, objects

from netspace.link.broker import node
from netspace.spec.types import LocalBroker

pytestmark = [pytest.mark.root]

PAIRS = int(os.environ.get("NETSPACE_PAIRS", "3"))
SEED = int(os.environ.get("NETSPACE_SEED", str(int(time.time() // 86400))))
OWN = ({"kind": "local"}, {"kind": "local", "port": 5692})
# What is kept on purpose: what environments wrote, copies of programs, compiled filters, empty folders of all
# environments, and what shows that there ever was a supervisor or a watch.
KEPT = tuple(
    re.compile(f"{folder}{rest}")
    for folder, rest in (
        (LAYOUT.layers, "/.*"),
        (LAYOUT.state, "/volumes(/.*)?"),
        (LAYOUT.inits, "(/.*)?"),
        (LAYOUT.logs, "/supervisor.log"),
        (
            LAYOUT.run,
            r"/(crun(/\.cache(/.*)?)?|disks|identities|services|supervisor\.lock|output|health|health/\.watch)",
        ),
    )
)
KEYS = (f"{LAYOUT.records('link')}/authority.json", f"{LAYOUT.state}/seals/")


class Host(World):
    """A host with parents for every kind of interface, without what its history may change.

    :ivar stopped: environments that are declared to be stopped: they may have run before.
    :ivar own: netspace's own broker, if that was applied last.
    """

    stopped: Collection[str] = ()
    own: LocalBroker | None = None

    def __enter__(self) -> Host:
        super().__enter__()
        for command in (["ip", "link", "add", BRIDGE, "type", "bridge"], ["ip", "link", "set", PARENT, "up"]):
            subprocess.run(command, check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "del", BRIDGE], check=True)
        super().__exit__()

    def look(self) -> dict[str, Any]:
        found = super().look()
        found["routes"] = sorted(found["routes"])
        found["nftables"] = sorted("\n".join(found["nftables"]).splitlines())
        stopped = "|".join(self.stopped) or "-"
        ran = re.compile(
            rf"{LAYOUT.logs}/environment-({stopped})\.log(\.times)?|{LAYOUT.run}/services/environment-({stopped})\.json"
            rf"|{LAYOUT.run}/environments/({stopped})/runtime\.log"
        )
        found["files"] = {
            path: about.split(" {")[0] if path.startswith(KEYS) else about
            for path, about in found["files"].items()
            if "/__pycache__" not in path and not ran.fullmatch(path) and not any(one.fullmatch(path) for one in KEPT)
        }
        found["cgroups"] = [one for one in found["cgroups"] if os.path.basename(one) != LAYOUT.instance]
        found["cards"] = {
            str(path): _card(path) for path in sorted(LAYOUT.run.glob("environments/*/inside/environment.json"))
        }
        if self.own is not None:
            found["own broker"] = objects(node.management(LAYOUT, self.own))
        return found


def _card(path: Path) -> str:
    """Return what an environment is told of its links, without names and public keys that are made anew."""
    card = json.loads(path.read_bytes())
    for peer in (*card["peers"], *card["senders"]):
        if "seal" in peer:
            peer["seal"] = sorted(peer["seal"])
    return TAG.sub("TAG", json.dumps(card, sort_keys=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("pairs")) as made:
        yield made


@pytest.fixture(scope="module")
def nothing(world: Host) -> dict[str, Any]:
    """A look at the host before anything was declared; the teardown before it makes what every teardown leaves."""
    removed()
    return world.rested()


@pytest.fixture(scope="module")
def kinds(world: Host) -> list[str]:
    """The kinds of interface that this kernel has."""
    found = ["veth", "tap", "bridge"]
    for kind, words in (
        ("macvlan", ("link", PARENT, "name", "tried", "type", "macvlan")),
        ("vxlan", ("name", "tried", "type", "vxlan", "id", "1", "remote", "198.51.100.2", "dstport", "4789")),
    ):
        if subprocess.run(["ip", "link", "add", *words], capture_output=True, check=False).returncode == 0:
            subprocess.run(["ip", "link", "del", "tried"], check=True)
            found.append(kind)
    return found


def done(declared: Declared) -> list[str]:
    """Apply a declaration; return what is wrong with that."""
    ran = faultpoints.run(lambda: faults_host.converge(declared), traced=False)
    if ran.error:
        return [ran.error]
    wrong = list(ran.value["errors"])
    planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
    return wrong + ([planned.error] if planned.error else planned.value["errors"] + planned.value["steps"])


def removed() -> None:
    ran = faultpoints.run(faults_host.teardown, traced=False)
    assert not ran.error and ran.value["errors"] == [], ran


def walk(world: Host, nothing: dict[str, Any], first: Declared, second: Declared) -> Iterator[str]:
    """Yield what is wrong with a pair: nothing, if it is as it should be."""

    def applied(name: str, declared: Declared) -> Iterator[str]:
        for what in done(declared):
            yield f"{name}: {what}"
        broker = declared.get("broker", {})
        world.own = (
            LocalBroker(port=broker.get("port", 5682)) if declared.get("links") and broker["kind"] == "local" else None
        )

    yield from applied("second from nothing", second)
    world.stopped = [name for one in (first, second) for name, that in one["environments"].items() if "state" in that]
    wanted = world.rested()
    removed()
    world.own = None
    if differing := world.settled(nothing):
        yield f"left by a teardown: {differing}"
    yield from applied("first from nothing", first)
    before = world.rested()
    yield from applied("second after first", second)
    if differing := world.settled(wanted):
        yield f"second after first: the host differs: {differing}"
    yield from applied("first again", first)
    if differing := world.settled(before):
        yield f"first again: the host differs: {differing}"


@pytest.mark.parametrize("seed", range(SEED, SEED + PAIRS))
def test_any_declaration_follows_any_other(world: Host, nothing: dict[str, Any], kinds: list[str], seed: int) -> None:
    theirs = world.declared()["broker"]
    first, second = Chooser(seed, world.folder, world.image, [theirs, theirs, *OWN], kinds).pair()
    try:
        for wrong in walk(world, nothing, first, second):
            told = f"NETSPACE_PAIRS=1 NETSPACE_SEED={seed}: {wrong}\n{json.dumps(first)}\n{json.dumps(second)}"
            print(told, flush=True)  # at once, where pytest captures nothing
            pytest.fail(told)
    finally:
        world.own = None
        removed()
