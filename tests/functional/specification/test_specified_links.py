"""SPECIFICATION.md: requests to the broker's management API, by applies of links."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.links.link_world import World
from support.specification import hold

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
