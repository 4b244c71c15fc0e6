"""Failures on the master: full disks, lost files, and declarations that can't be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet.fleets import published

from netspace.errors import StateError
from netspace.fleet import compile as compiler
from netspace.fleet import in_force
from netspace.fleet.declaration import FleetDeclaration, Sources
from netspace.fleet.in_force import Refusal

IMAGE = {"image": "tar:/srv/shop.tar"}
HOSTS = {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2"}}
WEB = {"hosts": HOSTS, "environments": {"web": {"on": "h1", **IMAGE}}}
MORE = {**WEB, "environments": {**WEB["environments"], "log": {"on": "h1", **IMAGE}}}


class Place:
    """A declaration in a folder, and the messages to the operator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, list[Refusal]()
        self.write(WEB)

    def write(self, data: Any) -> None:
        (self.folder / "fleet.yaml").write_text(data if isinstance(data, str) else yaml.safe_dump(data))

    @property
    def declared(self) -> FleetDeclaration:
        sources = Sources(lambda name: None, lambda path: yaml.safe_load(Path(path).read_text()), self.told.append)
        return FleetDeclaration(str(self.folder / "fleet.yaml"), self.folder / "kept", sources, {})

    def names(self) -> list[str]:
        pillar = self.declared.answer("h1").pillar
        assert pillar is not None
        return list(pillar["netspace"]["environments"])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("where", "name", "data"),
    [
        (in_force.Store, "commit", MORE), (in_force.Store, "lock", MORE), (in_force.Store, "refuse", "{"),
        (compiler, "fleet", MORE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RecursionError("too deep")])
def test_a_failure_leaves_what_is_in_force(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, data: Any, error: Exception
) -> None:
    assert place.names() == ["web"]

    def failing(*arguments: Any, **more: Any) -> Any:
        raise error

    place.write(data)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, failing)
        assert place.names() == ["web"] and place.names() == ["web"]
        assert len(place.told) == 1 and str(error) in place.told[0].problems[0][2]  # once, and not for each request
        with pytest.raises(type(error)):
            place.declared.apply()
    place.write(MORE)
    assert place.names() == ["web"]
    place.declared.store.paused = 0.0
    assert place.names() == ["log", "web"]


def test_without_anything_in_force_a_failure_is_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force.Store, "lock", lambda self: Path("/nonexistent").stat())
    with pytest.raises(OSError, match="nonexistent"):
        place.names()
    assert len(place.told) == 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_lost_slices_are_made_again(place: Place, damage: Any) -> None:
    place.names()
    (slices,) = (place.folder / "kept/compiled").glob("slices-*")
    damage(slices)
    assert place.names() == ["web"] and slices.stat().st_size
    damage(slices)
    place.write("{")
    with pytest.raises(StateError):  # the files that they were made from are gone
        place.names()


def test_whoever_compiles_a_broken_file_first_tells(place: Place) -> None:
    place.names()
    place.write("{")
    assert place.declared.apply() is not None and len(place.told) == 1
    place.names()
    assert len(place.told) == 1


def test_a_damaged_record_of_an_undeclared_host_is_named_with_its_remedy(place: Place) -> None:
    place.names()
    register = place.declared.register
    register.write(published(["h9"])["h9"])
    register.path("h9").write_text("{")
    (problem,) = place.declared.check().problems
    assert "salt-run netspace_fleet.leave h9 removes it" in problem.reason


@pytest.mark.parametrize("asked", ["answer", "apply"])
def test_two_that_begin_to_plan_at_once_keep_all_slices(
    place: Place, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    assert place.names() == ["web"]
    place.write({**MORE, "apply": "planned"})
    lock, others = in_force.Store.lock, iter((True,))

    def overtaken(store: in_force.Store) -> Any:
        if next(others, False):
            assert place.names() == ["web"]  # another process of the master has the lock first
        return lock(store)

    monkeypatch.setattr(in_force.Store, "lock", overtaken)
    late = place.declared
    assert late.apply() is None if asked == "apply" else late.answer("h1").pillar
    assert late.given.active() and place.names() == ["web"] and late.given.placed() == {"web": ("h1",)}
