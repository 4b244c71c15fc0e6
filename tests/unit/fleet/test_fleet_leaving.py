"""Leaving a fleet: a host loses its links at once, even if the declaration can't be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import fleets, published, written

from netspace.errors import NetspaceError
from netspace.fleet import compile as compiler
from netspace.fleet import in_force, leaving
from netspace.fleet.declaration import FleetDeclaration
from netspace.link.pki.root import Root

IMAGE = {"image": "tar:/srv/shop.tar"}
FLEET: dict[str, Any] = {
    "hosts": {
        "h1": {"address": "198.51.100.1"},
        "h2": {"address": "198.51.100.2", "minion": "m2"},
        "h3": {"address": "198.51.100.3"},
    },
    "environments": {name: {"on": host, **IMAGE} for name, host in (("web", "h1"), ("db", "h2"), ("log", "h3"))},
    "links": [{"from": "web", "to": "db"}, {"from": "web", "to": "log"}],
}


class Released(Root):
    """A root CA that only records which names it released."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.error: Exception | None = None

    def release(self, trust_domain: str) -> None:
        if self.error is not None:
            raise self.error
        self.released.append(trust_domain)


def write(folder: Path, data: Any) -> None:
    (folder / "fleet.yaml").write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))


@pytest.fixture
def declared(tmp_path: Path) -> FleetDeclaration:
    write(tmp_path, FLEET)
    made = written(tmp_path)
    for name, facts in published(["h1", "h2", "h3"]).items():
        made.register.write(facts if name != "h2" else type(facts)(**{**_fields(facts), "minion": "m2"}))
    assert made.apply() is None
    return made


def _fields(facts: Any) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__struct_fields__}


def peers(declared: FleetDeclaration, minion: str = "h1") -> list[str]:
    manifest = declared.store.current().manifest
    pillar = declared.store.slice(manifest, minion) if manifest is not None else None
    assert pillar is not None
    return sorted(pillar["netspace"]["broker"].get("hosts", {}))


@pytest.mark.parametrize("name", ["h2", "m2"])
def test_a_host_leaves(declared: FleetDeclaration, name: str) -> None:
    assert peers(declared) == ["h2", "h3"]
    assert leaving.leave(declared, [name], None) == {name: {"left": True, "apply": ["h1"]}}
    assert peers(declared) == ["h3"]


@pytest.mark.parametrize("broken", ["{", {**FLEET, "links": [{"from": "web", "to": "dbb"}]}, "hosts:\n", ""])
@pytest.mark.parametrize("name", ["h2", "m2"])
def test_a_host_leaves_though_the_declaration_is_broken(
    declared: FleetDeclaration, tmp_path: Path, broken: Any, name: str
) -> None:
    write(tmp_path, broken)
    root = Released()
    found = leaving.leave(declared, [name], root)[name]
    assert "in force without it; the declaration has" in found.pop("warning")
    assert found == {"left": True, "apply": ["h1"], "released": "h2.netspace.internal"}
    assert peers(declared) == ["h3"] and peers(declared, "m2") == []
    assert peers(declared) == ["h3"] and declared.answer("h1").pillar is not None
    write(tmp_path, FLEET)
    assert declared.apply() is None and peers(declared) == ["h3"]


def test_a_host_leaves_though_nothing_can_be_compiled(
    declared: FleetDeclaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **more: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr(compiler, "fleet", failing)
    assert "RecursionError" in leaving.leave(declared, ["h2"], None)["h2"]["warning"]
    assert peers(declared) == ["h3"]


def test_a_host_that_cannot_be_cut_out_is_told(declared: FleetDeclaration, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(in_force.Store, "_put", full)
    found = leaving.leave(declared, ["h2"], None)["h2"]
    assert found["left"] and "removed, but the slices in force still have it: [Errno 28]" in found["error"]


def test_a_host_that_left_is_released_later(declared: FleetDeclaration, tmp_path: Path) -> None:
    root = Released()
    leaving.leave(declared, ["h2"], None)
    assert leaving.leave(declared, ["h2"], root)["h2"] == {
        "left": False,
        "apply": [],
        "released": "h2.netspace.internal",
    }
    root.error = NetspaceError("it is not certified")
    found = leaving.leave(declared, ["h3"], root)["h3"]
    assert "it is not certified" in found["error"] and found["left"] and peers(declared) == []


def test_a_damaged_record_is_removed(declared: FleetDeclaration) -> None:
    declared.register.write(published(["h9"])["h9"])
    declared.register.path("h9").write_text("{")
    assert declared.apply() is not None
    assert leaving.leave(declared, ["h9"], None) == {"h9": {"left": True, "apply": []}}
    assert declared.apply() is None


def test_a_name_that_is_no_hosts_is_refused(declared: FleetDeclaration) -> None:
    with pytest.raises(NetspaceError, match="h7 is not a host of the fleet"):
        leaving.leave(declared, ["h7"], None)


@settings(max_examples=60, deadline=None)
@given(fleets(), st.data())
def test_slices_are_cut_as_a_compilation_would_make_them(data: dict[str, Any], draw: st.DataObject) -> None:
    def slices(joined: Any) -> dict[str, Any]:
        found = compiler.fleet({"fleet.yaml": data}, published(joined), {}, {})
        return {minion: one["netspace"] for minion, one in found.slices.items()}

    host = draw.draw(st.sampled_from(sorted(data["hosts"])))
    others = [one for one in data["hosts"] if one != host]
    assert leaving.without(slices(data["hosts"]), host) == slices(others)
