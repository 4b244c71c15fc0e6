"""SPECIFICATION.md: the objects that one environment adds to a host, and the cost of one change on a host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from support.hosts import promised
from support.hosts.promised import LARGER, ONE, OTHER, OTHERS, PLAIN, counted
from support.specification import hold

from netspace import index

pytestmark = pytest.mark.root

CHANGES = ("create", "unchanged", "update", "restart", "remove")
KINDS = ("opened", "writes", "fsyncs", "netlink", "programs", "mounts")


def each_change() -> dict[str, promised.Counted]:
    """Return the counts of each kind of change of the environment ``one``."""
    return {
        "create": counted({"one": ONE}),
        "unchanged": counted({"one": ONE}),
        "update": counted({"one": LARGER}),
        "restart": counted({"one": OTHER}),
        "remove": counted({}, "one"),
    }


def each_growth() -> dict[str, int]:
    """Return the system calls of an unchanged apply, and the library calls of each kind of change to ``one``."""
    time.sleep(2 * index.SETTLED)  # all records are old enough to be noted, which the next apply does
    promised.apply({"one": ONE})
    promised.remove("one")
    time.sleep(2 * index.SETTLED)
    found = {"create": promised.work({"one": ONE})}
    time.sleep(2 * index.SETTLED)
    promised.apply({"one": LARGER})
    promised.apply({"one": ONE})
    time.sleep(2 * index.SETTLED)
    promised.apply({"one": LARGER})
    found["system-calls"] = promised.system_calls_of({"one": LARGER})
    found["unchanged"] = promised.work({"one": LARGER})
    found["update"] = promised.work({"one": ONE})
    found["restart"] = promised.work({"one": OTHER})
    found["remove"] = promised.work_of_removal("one")
    return found


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, int]]:
    """All counts of this file, each by the key of its line."""
    found: dict[str, int] = {}
    with promised.machine():
        for kind, environment in (("environment", PLAIN), ("veth", ONE)):
            found |= {f"{kind}.{key}": number for key, number in promised.added(environment).items()}
        found["process.modules"] = promised.modules({"resident": ONE})
        alone = each_growth()
        for change, counts in each_change().items():
            found |= {f"{change}.{kind}": number for kind, number in asdict(counts).items()}
        promised.apply({f"other{number}": ONE for number in range(OTHERS)})
        among = each_growth()
        for change, counts in each_change().items():
            found |= {f"{change}-among.{kind}": number for kind, number in asdict(counts).items()}
        for key, number in among.items():
            found[f"other.{key}"] = -(-(number - alone[key]) // OTHERS)  # rounded up
    yield found


@pytest.mark.parametrize(
    "line",
    [
        *("environment.processes", "environment.threads", "environment.descriptors", "environment.groups"),
        *("environment.namespaces", "environment.mounts", "environment.links", "environment.rules"),
        *("environment.disk-files", "environment.disk-bytes", "environment.memory-files", "environment.memory-bytes"),
        *("process.modules", "veth.links", "veth.rules", "veth.mounts", "veth.disk-bytes"),
        *("veth.processes", "veth.threads", "veth.descriptors", "veth.namespaces", "veth.groups"),
        *(f"{change}.{kind}" for change in CHANGES for kind in KINDS),
        *("other.system-calls", "other.create", "other.unchanged", "other.update", "other.restart", "other.remove"),
    ],
)
def test_count_is_within_its_line(measured: dict[str, int], line: str) -> None:
    hold(line, measured[line])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_change_among_others_is_within_the_same_line(measured: dict[str, int], change: str, kind: str) -> None:
    hold(f"{change}.{kind}", measured[f"{change}-among.{kind}"])
