"""Editions of a fleet's declaration: of two masters that disagree, a host obeys the one with the newer declaration."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import published, written

from netspace.errors import NetspaceError, StateError
from netspace.fleet import edition
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.edition import KEY, EditionFile
from netspace.layout import Layout
from netspace.plugin import arguments, editions

FLEET: dict[str, Any] = {
    "hosts": {"h1": {"address": "198.51.100.1"}},
    "environments": {"web": {"on": "h1", "image": "tar:/srv/shop.tar"}},
}


def master(folder: Path, number: int | None, image: str = "shop") -> FleetDeclaration:
    """Return a master's declaration of an edition, which it has put in force if it has no problem."""
    folder.mkdir(exist_ok=True)
    data = {**FLEET, "environments": {"web": {"on": "h1", "image": f"tar:/srv/{image}.tar"}}}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(data | ({} if number is None else {"edition": number})))
    declared = written(folder)
    for facts in published(["h1"]).values():
        declared.register.write(facts)
    declared.apply()
    return declared


def pillar(of: FleetDeclaration) -> dict[str, Any]:
    """Return the pillar that the master serves to h1."""
    served = import_module("_pillar.netspace")
    return {**(of.answer("h1").pillar or {}), **served._edition(of)}


def image(found: dict[str, Any]) -> str:
    return str(found["netspace"]["environments"]["web"]["image"])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EditionFile:
    """Return the record of a host whose files are in the test's folder."""
    layout = Layout(root=tmp_path / "host")
    monkeypatch.setattr(arguments, "layout", lambda opts: layout)
    return EditionFile(layout.records("fleet") / "edition.json")


def test_of_two_masters_the_older_one_is_refused(tmp_path: Path, host: EditionFile) -> None:
    old, new = master(tmp_path / "old", 6, "old"), master(tmp_path / "new", 7, "new")
    editions.check({}, pillar(old), note=True)
    editions.check({}, pillar(new), note=True)
    with pytest.raises(NetspaceError, match="edition 7 before, and this master has 6"):
        editions.check({}, pillar(old), note=True)
    assert host.read() == 7
    # Brought up to date, it is obeyed again; and then the other one is refused.
    old = master(tmp_path / "old", 8, "newest")
    editions.check({}, pillar(old), note=True)
    with pytest.raises(NetspaceError, match="edition 8"):
        editions.check({}, pillar(new), note=True)
    with pytest.raises(NetspaceError, match="has none"):
        editions.check({}, {"netspace": {}}, note=True)


def test_a_dry_run_notes_no_edition(tmp_path: Path, host: EditionFile) -> None:
    editions.check({}, pillar(master(tmp_path / "new", 7)), note=False)
    assert not host.path.exists()
    editions.check({}, {"netspace": {}}, note=True)
    assert not host.path.exists(), "without editions, nothing is written"


@pytest.mark.parametrize("lower", [None, 6])
def test_a_lower_edition_of_the_file_leaves_the_last_one(tmp_path: Path, lower: int | None) -> None:
    assert image(pillar(master(tmp_path / "one", 7, "new"))) == "tar:/srv/new.tar"
    declared = master(tmp_path / "one", lower, "old")
    (problem,) = declared.check().problems
    assert problem.path == "edition" and "is lower than 7" in problem.reason
    assert image(pillar(declared)) == "tar:/srv/new.tar" and pillar(declared)[KEY] == 7


@pytest.mark.parametrize("number", [-1, 2**53 + 1, 1.5, "7", True, [7]])
def test_an_edition_that_can_not_be_is_refused(tmp_path: Path, host: EditionFile, number: Any) -> None:
    (problem,) = master(tmp_path / "one", number).check().problems
    assert problem.path == "edition"
    with pytest.raises(NetspaceError, match="is not a valid edition"):
        editions.check({}, {KEY: number}, note=True)


@pytest.mark.parametrize("text", ["", "{}", '{"edition": -1}', '{"edition": "9"}', "[7]"])
def test_a_damaged_record_lets_no_pillar_in(host: EditionFile, text: str) -> None:
    host.path.parent.mkdir(parents=True)
    host.path.write_text(text)
    with pytest.raises(StateError, match=r"edition\.json"):
        editions.check({}, {KEY: 7}, note=True)


def test_a_planned_edition_stays_when_changes_are_taken_back(tmp_path: Path, host: EditionFile) -> None:
    """A slice whose changes are taken back keeps the newer edition's number, so that hosts accept it."""
    declared = master(tmp_path / "one", 7, "old")
    for number, when in ((8, "old"), (9, "new")):
        data = yaml.safe_load((tmp_path / "one/fleet.yaml").read_text()) | {"apply": "planned", "edition": number}
        data["environments"]["web"]["image"] = f"tar:/srv/{when}.tar"
        (tmp_path / "one/fleet.yaml").write_text(yaml.safe_dump(data))
        declared = written(tmp_path / "one")
        declared.apply()
        declared.candidate()
    found = pillar(declared)
    assert (image(found), found[KEY]) == ("tar:/srv/old.tar", 9)
    editions.check({}, found, note=True)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20))
@settings(deadline=None)
def test_no_order_of_masters_gives_a_host_an_older_edition(asked: list[tuple[int, bool]]) -> None:
    held: dict[str, int] = {}

    class Memory(EditionFile):
        def read(self) -> int:
            return held.get("edition", 0)

        def note(self, edition: int) -> None:
            held["edition"] = edition

    file, highest = Memory(Path("/nowhere")), 0
    for number, applied in asked:
        try:
            found = edition.admitted(file, {KEY: number} if number else {})
        except NetspaceError:
            assert number < highest
            continue
        assert found == number >= highest
        if applied:
            file.note(found)
            highest = found


@pytest.mark.parametrize("kind", ["attestation", "interface", "link", "environment"])
@pytest.mark.parametrize("test", [True, False])
def test_each_state_of_a_whole_pillar_refuses(
    host: EditionFile, monkeypatch: pytest.MonkeyPatch, kind: str, test: bool
) -> None:
    host.note(7)
    state = import_module(f"_states.netspace_{kind}")
    for name, value in (("opts", {"test": test, "id": "h1"}), ("pillar", {"netspace": {}, KEY: 6}), ("running", {})):
        monkeypatch.setattr(state, f"__{name}__", value, raising=False)

    def never() -> None:
        raise AssertionError("the host must not be touched")

    monkeypatch.setattr(state, "_host", never)
    found = (state.required if kind == "attestation" else state.managed)("all")
    assert found["result"] is False and found["changes"] == {} and "edition 7" in found["comment"], found
