"""From any declaration to any other in one apply: the host is then as if only the second had ever been declared.

Each declaration of a chain is applied from nothing first, which shows how the host is to look. Then the chain is
walked: each step succeeds at once, and leaves nothing to do, nothing of the one before, nothing of another's touched.
What two may take from one another moves between environments: an address, a port of the host, a folder, the ends of
links, an order.

``NETSPACE_PAIRS`` is the number of steps, ``NETSPACE_SEED`` another seed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.hosts import faultpoints, faults_host
from support.hosts.faults_host import LAYOUT, Declared, World

pytestmark = [pytest.mark.root]

PAIRS = int(os.environ.get("NETSPACE_PAIRS", "4"))
SEED = int(os.environ.get("NETSPACE_SEED", "20261127"))
NAMES = ("a", "b", "c", "d")
ADDRESSES = tuple(f"10.203.77.{last}" for last in range(1, 6))
WAYS: tuple[dict[str, Any], ...] = ({}, {"pattern": "request"}, {"length": 10}, {"pattern": "request", "ttl": 60})


class Host(World):
    """A host without what its history may change.

    That is the order of routes, which of our modules were compiled, whether somebody's health was ever watched, and
    what environments have written, which is kept.
    """

    def look(self) -> dict[str, Any]:
        found = super().look()
        found["routes"] = sorted(found["routes"])
        found["nftables"] = sorted("\n".join(found["nftables"]).splitlines())
        watched = (f"{LAYOUT.run}/health", f"{LAYOUT.run}/health/.watch")
        kept = f"{LAYOUT.layers}/"
        found["files"] = {
            path: about
            for path, about in found["files"].items()
            if "/__pycache__" not in path and path not in watched and not path.startswith(kept)
        }
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Host(tmp_path_factory.mktemp("pairs")) as made:
        yield made


class Chooser:
    """Makes declarations of up to four environments, at random."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)

    def declaration(self) -> Declared:
        """Make one."""
        made = self._world.declared()
        common = {key: made["environments"]["a"][key] for key in ("image", "command")}
        names = [name for name in NAMES if self._random.random() < 0.65] or [NAMES[0]]  # without any, images stay
        addresses = dict(zip(names, self._random.sample(ADDRESSES, len(names)), strict=True))
        folders = self._shared(("one", "two"), names)
        ports = self._shared(("443", "198.51.100.1:53"), names)
        environments = {}
        for place, name in enumerate(names):
            environments[name] = {
                **common,
                **self._some(place, names),
                "interface": self._interface(addresses[name], ports.get(name)),
                "limits": {"pids": self._random.choice((64, 128)), "memory": self._random.choice(("64M", "96M"))},
            }
            if name in folders:
                source = self._world.folder / "volumes" / folders[name]
                environments[name]["volumes"] = [{"source": str(source), "target": "/data"}]
        made["environments"] = environments
        made["links"] = [
            {
                "from": one,
                "to": other,
                # Each of its own kind: other bounds are another queue, and the former one is read until it is empty.
                **WAYS[(NAMES.index(one) + 2 * NAMES.index(other)) % len(WAYS)],
            }
            for one, other in itertools.permutations(names, 2)
            if self._random.random() < 0.3
        ]
        return made

    def _shared(self, things: tuple[str, ...], names: list[str]) -> dict[str, str]:
        """Give each of some things to one environment at most."""
        owners = self._random.sample(names, min(len(names), self._random.randint(0, len(things))))
        return dict(zip(owners, self._random.sample(things, len(owners)), strict=True))

    def _some(self, place: int, names: list[str]) -> dict[str, Any]:
        choose = self._random.choice
        found: dict[str, Any] = {
            "stop_timeout": 1,
            "env": {"TURN": choose(("1", "2"))},
            "user": choose((1000, 1001)),
            "read_only": choose((True, False)),
            "seccomp": choose(("strict", "standard")),
        }
        if place and choose((True, False)):
            found["after"] = [choose(names[:place])]
        return found

    def _interface(self, address: str, port: str | None) -> dict[str, Any]:
        """Its address is declared: one that netspace chose stays for as long as there is an interface."""
        if self._random.random() < 0.3:
            return {"kind": "none"}
        found: dict[str, Any] = {"kind": "veth", "ipv4": address}
        if self._random.random() < 0.5:
            found["allow"] = [{"direction": "out", "cidr": "198.51.100.0/24", "port": self._random.choice((80, 443))}]
        if port is not None:
            found["publish"] = [f"{port}:{self._random.choice(('8080', '8443', '53/udp'))}"]
        return found


def done(world: World, declared: Declared) -> list[str]:
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


def test_any_declaration_follows_any_other(world: World) -> None:
    choose = Chooser(world, SEED)
    chain = [choose.declaration() for _ in range(PAIRS + 1)]
    looks = []
    for declared in chain:
        assert done(world, declared) == [], declared
        looks.append(world.rested())
        removed()
    wrong: list[str] = []
    for number, (declared, look) in enumerate(zip(chain, looks, strict=True)):
        print(number, "->", sorted(declared["environments"]), len(declared["links"]), flush=True)
        for what in done(world, declared):
            wrong.append(f"step {number}: {what}")
        if differing := world.settled(look):
            wrong.append(f"step {number}: the host differs: {differing}")
        if wrong:
            print(chain[number - 1] if number else None, declared, sep="\n", flush=True)
            break
    removed()
    assert not wrong, "\n".join(wrong)
