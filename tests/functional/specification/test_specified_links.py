"""SPECIFICATION.md: requests to the broker's management API, by applies of links."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.links.link_world import World
from support.specification import hold
from support.waiting import until

from netspace.link.broker import management
from netspace.spec.types import Link

pytestmark = pytest.mark.root

FEW = tuple(Link(source="web", target=f"shop{number}") for number in range(3))
MORE = Link(source="web", target="late", pattern="request")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        made.environment("web", "late", *(link.target for link in FEW))
        made.apply(*FEW)
        yield made
    finally:
        made.remove()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests from now on, each as ``GET /api/...``."""
    sent: list[str] = []
    real: Callable[..., Any] = management.Management._exchange

    def exchange(self: management.Management, method: str, url: str, *rest: Any) -> Any:
        sent.append(f"{method} {url}")
        return real(self, method, url, *rest)

    monkeypatch.setattr(management.Management, "_exchange", exchange)
    return sent


def test_requests_of_an_unchanged_apply(world: World, requests: list[str]) -> None:
    assert not world.apply(*FEW).steps
    hold("link.unchanged-requests", len(requests))


def test_requests_of_one_more_link(world: World, requests: list[str]) -> None:
    assert world.apply(*FEW, MORE).steps
    hold("link.create-requests", len(requests))
    requests.clear()
    assert world.apply(*FEW).steps
    hold("link.remove-requests", len(requests))


def things(world: World) -> Counter[str]:
    """Count the processes of this host, the descriptors of forwarder and broker, and the files of the host's state."""
    found: Counter[str] = Counter()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and Path(f"/proc/{entry}/cmdline").read_bytes():
                found["processes"] += 1
                if Path(f"/proc/{entry}/comm").read_text().strip() in ("haproxy", "beam.smp"):
                    found["descriptors"] += len(os.listdir(f"/proc/{entry}/fd"))
    for folder, _, files in os.walk(world.layout.state):
        found["disk-files"] += len(files)
        found["disk-bytes"] += sum((Path(folder) / file).lstat().st_size for file in files)
    return found


def stable(world: World) -> Counter[str]:
    """Count once the numbers stay equal: a reload of the forwarder has two processes for a moment."""
    seen = [things(world)]

    def stays() -> bool:
        seen.append(things(world))
        return seen[-1] == seen[-2]

    until(stays, "the host's objects change without end", pause=0.5)
    return seen[-1]


def test_what_a_link_adds_to_its_host(world: World) -> None:
    world.apply(*FEW)
    before = stable(world)
    among = Link(source="shop0", target="shop1", pattern="request")
    world.apply(*FEW, among)
    after = stable(world)
    measured = {key: after[key] - before[key] for key in after}
    for key in ("link.processes", "link.descriptors", "link.disk-files", "link.disk-bytes"):
        hold(key, measured[key.partition(".")[2]])
    world.apply(*FEW, among, MORE)
    member = stable(world)
    measured = {key: member[key] - after[key] for key in member}
    for key in ("member.processes", "member.descriptors"):
        hold(key, measured[key.partition(".")[2]])
