"""One apply leads from any declaration to any other: the host is then as if only the second had ever been applied.

First, each declaration is applied to an empty host, with a teardown afterwards. This shows the wanted state of the host
for each declaration. Then a tour leads from each declaration to each other one, so each pair costs one apply. Each
apply must succeed at the first try, and leave nothing to do. Nothing of earlier declarations may be left, and nothing
of other programs changed.

``NETSPACE_PAIRS`` is the number of pairs, ``NETSPACE_SEED`` the seed of the first tour, by default the number of the
day. A failure prints the settings that repeat only its pair: ``NETSPACE_SEED=20786 NETSPACE_PAIR=3,5``.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import sampling
from support.hosts import faultpoints, faults_host
from support.hosts.declared_pairs import BRIDGE, PARENT, Chooser, Declared, walk
from support.hosts.faults_host import LAYOUT, TAG, World, objects

from netspace.link.broker import node
from netspace.spec.types import LocalBroker

pytestmark = [pytest.mark.root]

PAIRS = int(os.environ.get("NETSPACE_PAIRS", "6"))
SEED = int(os.environ.get("NETSPACE_SEED", str(sampling.today())))
ALONE = os.environ.get("NETSPACE_PAIR", "")
MOST = 8 * 7  # pairs of one tour, which has eight declarations
FAILURES = 3  # of one tour, then it ends
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
    """A host with parent devices for every kind of interface. Its observed state omits values that depend on history.

    :ivar stopped: environments that are declared to be stopped; they may have run before.
    :ivar own: netspace's own broker, if the last declaration had it.
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
    """Return an environment's card, without random names and public keys, which differ each time."""
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
    """The host's state without any declaration, observed after a teardown, which leaves some things behind."""
    removed()
    return world.rested()


@pytest.fixture(scope="module")
def kinds(world: Host) -> list[str]:
    """The kinds of interface that this kernel supports."""
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
    """Apply a declaration; return the errors."""
    ran = faultpoints.run(lambda: faults_host.converge(declared), traced=False)
    if ran.error:
        return [ran.error]
    wrong = list(ran.value["errors"])
    planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
    return wrong + ([planned.error] if planned.error else planned.value["errors"] + planned.value["steps"])


def removed() -> None:
    ran = faultpoints.run(faults_host.teardown, traced=False)
    assert not ran.error and ran.value["errors"] == [], ran


@dataclass
class Tour:
    """All declarations, and for each declaration the state of a host on which nothing else was applied.

    :ivar told: the problems that were found.
    """

    world: Host
    nothing: dict[str, Any]
    seed: int
    declared: dict[int, Declared]
    wanted: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def apply(self, one: int) -> list[str]:
        """Apply a declaration; return the errors."""
        declared = self.declared[one]
        wrong = done(declared)
        broker = declared.get("broker", {})
        self.world.stopped = [name for name, that in declared["environments"].items() if "state" in that]
        self.world.own = (
            LocalBroker(port=broker.get("port", 5682)) if declared.get("links") and broker["kind"] == "local" else None
        )
        return wrong

    def remove(self) -> None:
        self.world.own = None
        removed()

    def prepare(self) -> None:
        """Apply each declaration to an empty host, and record the host's state."""
        for one in self.declared:
            for wrong in self.apply(one):
                self.tell(f"{one} from nothing: {wrong}", one)
            self.wanted[one] = self.world.rested()
            self.remove()
            if differing := self.world.settled(self.nothing):
                self.tell(f"left by a teardown of {one}: {differing}", one)

    def step(self, one: int) -> list[str]:
        """Apply a declaration over the present state; return the errors and the differences from the wanted state."""
        wrong = self.apply(one)
        if differing := self.world.settled(self.wanted[one]):
            wrong.append(f"the host differs: {differing}")
        return wrong

    def follow(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Apply one declaration after another.

        After a failure, repeat only that pair, then continue from its second declaration.
        """
        self.begin(pairs[0][0])
        for number, (first, second) in enumerate(pairs):
            wrong = self.step(second)
            if not wrong:
                continue
            self.remove()
            alone = [*self.apply(first), *self.step(second)]
            repeated = f"NETSPACE_PAIR={first},{second}" if alone else f"not alone, but after {pairs[:number]}"
            for what in alone or wrong:
                self.tell(f"{second} after {first} ({repeated}): {what}", first, second)
            if len(self.told) >= FAILURES:
                return
            self.remove()
            self.begin(second)

    def begin(self, one: int) -> None:
        for wrong in self.step(one):
            self.tell(f"{one} from nothing, again: {wrong}", one)

    def tell(self, what: str, *about: int) -> None:
        text = "\n".join([f"NETSPACE_SEED={self.seed}: {what}", *(json.dumps(self.declared[one]) for one in about)])
        print(text, flush=True)  # at once, where pytest captures nothing
        self.told.append(text)


def tours() -> list[tuple[int, list[tuple[int, int]]]]:
    """Return the seed and the pairs of each tour."""
    if ALONE:
        first, second = map(int, ALONE.split(","))
        return [(SEED, [(first, second), (second, first)])]
    every = [(SEED + tour, min(MOST, PAIRS - start)) for tour, start in enumerate(range(0, PAIRS, MOST))]
    return [(seed, list(itertools.islice(walk(PAIRS + 1), number))) for seed, number in every]


@pytest.mark.parametrize(("seed", "pairs"), [pytest.param(*one, id=str(one[0])) for one in tours()])
def test_any_declaration_follows_any_other(
    world: Host, nothing: dict[str, Any], kinds: list[str], seed: int, pairs: list[tuple[int, int]]
) -> None:
    theirs = world.declared()["broker"]
    drawn = Chooser(seed, world.folder, world.image, [theirs, theirs, *OWN], kinds).several(max(map(max, pairs)) + 1)
    tour = Tour(world, nothing, seed, {one: drawn[one] for one in sorted(set(itertools.chain(*pairs)))})
    try:
        tour.prepare()
        tour.follow(pairs)
    finally:
        tour.remove()
    assert not tour.told, "\n".join(tour.told)
