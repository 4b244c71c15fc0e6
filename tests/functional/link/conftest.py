"""Fixtures for tests of links: one host or two for all tests of a module, programs on them, and a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.links.link_world import World
from support.links.linked_hosts import Cable, hosts
from support.links.programs import Program, no_mail, tell

from netspace.link.broker import versions

if os.environ.get("NETSPACE_RABBITMQ") == "any":
    versions.UNKNOWN = (9,)


class Street:
    """The owner of the one host that all modules with the fixture :func:`standing` use, one after another."""

    def __init__(self) -> None:
        self._host: World | None = None

    def take(self) -> World:
        if self._host is None:
            self._host = World()
        return self._host

    def give_back(self) -> None:
        """Make the host ready for the next module; if that fails, remove it."""
        assert self._host is not None
        try:
            self._host.hand_over()
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        if self._host is not None:
            host, self._host = self._host, None
            host.remove()


@pytest.fixture(scope="session")
def _street() -> Iterator[Street]:
    street = Street()
    yield street
    street.clear()


@pytest.fixture(scope="module")
def standing(_street: Street) -> Iterator[World]:
    """A host whose broker already runs, shared by modules that leave it as they found it.

    A new start of the broker would take five seconds of processor time for each module. The first :meth:`World.apply`
    of a module finds no links, environments or mail of earlier modules, but the host has the same names and keys as
    before.
    """
    yield _street.take()
    _street.give_back()


@pytest.fixture(scope="module")
def world(_street: Street) -> Iterator[World]:
    """A new host, without a broker."""
    _street.clear()  # it has the same ports
    made = World()
    try:
        yield made
    finally:
        made.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have modules with :func:`standing` run one after the other, before the other modules of links."""
    places = [number for number, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    here = sorted((items[number] for number in places), key=lambda item: "standing" not in item.fixturenames)  # type: ignore[attr-defined]
    for number, item in zip(places, here, strict=True):
        items[number] = item


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the two hosts' certificate authorities, for :func:`both`."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def both(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[World, World, Cable]]:
    """Two hosts with the ENVIRONMENTS of the module, and the network between the hosts."""
    with hosts(folder) as (h1, h2, cable):
        for name, world in {"h1": h1, "h2": h2}.items():
            world.environment(*request.module.ENVIRONMENTS[name])
        yield h1, h2, cable


@pytest.fixture
def declared(both: tuple[World, World, Cable], request: pytest.FixtureRequest) -> tuple[World, World, Cable]:
    """Both hosts with the LINKS of the module declared on each: connected, and without messages."""
    h1, h2, cable = both
    cable.mend()
    for world in (h2, h1):
        world.declare(*request.module.LINKS)
    for world in (h1, h2):
        no_mail(world)
    return both


@pytest.fixture
def program(linked, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs with netspace-client on the linked hosts of a module: ``program(host, environment)``."""
    with contextlib.ExitStack() as after:  # of several, all leave, even if one can't

        def start(world: World, name: str, **options: Any) -> Program:
            started = Program(world, name, tell(world, name, tmp_path / name), **options)
            after.callback(started.leave)
            return started

        yield start


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep draining queues until the test says that their counts have settled."""
    monkeypatch.setattr("netspace.link.topology.draining.SETTLED", 1e9)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Fail a test that takes more than ten minutes."""

    def ring(*_: object) -> None:
        raise TimeoutError("the test takes more than ten minutes")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
