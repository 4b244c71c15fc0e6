"""Another machine replaces a host: by one command, repeatedly, and after a kill at any point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet.fleets import published, written

from netspace.errors import NetspaceError
from netspace.fleet import replacing
from netspace.link.pki import root as roots
from netspace.link.pki.root import Root
from netspace.link.topology import pair_keys
from netspace.plugin.minions import forget_tpm

IMAGE = {"image": "tar:/srv/shop.tar"}
FLEET = {
    "hosts": {host: {"address": f"198.51.100.{host[1]}"} for host in ("h1", "h2")},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
    "defaults": {"attestation": {"verifier": "master", "verifier_keys": ["A" * 43]}},
}


class Killed(BaseException):
    pass


class Machine:
    """A stand-in for a machine of a fleet. It has its own keys, and runs the library's real functions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.unanswered = folder, True, 0

    def call(self, function: str, **arguments: Any) -> Any:
        if not self.on:
            self.unanswered += 1
            raise NetspaceError("did not answer within 60 s; is its key accepted?")
        functions: dict[str, Callable[[], Any]] = {
            "netspace_link.authority_request": lambda: roots.request(self.folder),
            "netspace_link.authority_adopt": lambda: roots.adopt(self.folder, arguments["chain"]),
            "netspace_link.public_key": lambda: pair_keys.public(self.folder),
        }
        return functions[function]()

    def attest(self) -> str:
        return "L3"


class Fleet:
    def __init__(self, folder: Path) -> None:
        (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET, sort_keys=False))
        self.declared, self.root = written(folder), Root(folder / "root")
        self.machine, self.folder = Machine(folder / "old"), folder
        self.released: list[str] = []
        self.declared.register.write(published(["h1"])["h1"])
        assert self.replace()["changes"].keys() == {"authority", "public_key", "level"}
        self.released.clear()

    def replace(self) -> dict[str, Any]:
        return dict(
            replacing.replace(
                self.declared, "h2", self.root, lambda minion: self.machine, self.released.append, self.ask
            )["h2"]
        )

    def ask(self, minions: Sequence[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("nothing is sealed")

    def new_machine(self) -> None:
        self.machine = Machine(self.folder / "new")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def key(fleet: Fleet) -> str:
    facts = fleet.declared.register.read("h2")
    assert facts is not None
    return facts.public_key


def test_the_machine_that_joined_is_not_replaced(fleet: Fleet) -> None:
    assert fleet.replace() == {"changes": {}, "missing": []} and fleet.released == []


def test_a_new_machine_takes_the_place_once(fleet: Fleet) -> None:
    before = key(fleet)
    fleet.new_machine()
    found = fleet.replace()
    assert found["left"] is True and found["released"] == "h2.netspace.internal" and found["apply"] == ["h1"]
    assert found["changes"].keys() == {"authority", "public_key", "level"} and found["missing"] == [replacing.EMPTY]
    assert key(fleet) == pair_keys.public(fleet.machine.folder) != before and fleet.released == ["h2"]
    assert fleet.declared.answer("h1").pillar["netspace"]["broker"]["hosts"]["h2"]["public_key"] == key(fleet)  # type: ignore[index]
    assert fleet.replace() == {"changes": {}, "missing": []} and fleet.released == ["h2"]


def test_a_dead_machine_is_cut_out_until_the_new_one_is_there(fleet: Fleet) -> None:
    fleet.machine.on = False
    found = fleet.replace()
    assert found["left"] is True and "can't join yet: did not answer" in found["error"]
    assert fleet.machine.unanswered == 1, "each time costs an operator a minute"
    assert "hosts" not in fleet.declared.answer("h1").pillar["netspace"]["broker"]  # type: ignore[index]
    assert "left" not in fleet.replace(), "once is enough"
    fleet.new_machine()
    assert fleet.replace()["missing"] == [] and key(fleet) == pair_keys.public(fleet.machine.folder)


@pytest.mark.parametrize("step", ["release", "remove", "join"])
def test_a_replacement_that_was_killed_is_finished(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    fleet.new_machine()

    def killed(*arguments: object) -> None:
        raise Killed

    where: dict[str, tuple[object, str]] = {
        "release": (fleet.root, "release"),
        "remove": (fleet.declared.register, "remove"),
        "join": (fleet.machine, "attest"),
    }
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*where[step], killed)
        fleet.replace()
    found = fleet.replace()
    assert "error" not in found and key(fleet) == pair_keys.public(fleet.machine.folder)
    assert fleet.replace() == {"changes": {}, "missing": []}


def test_a_failed_release_leaves_the_host_in_the_fleet(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.new_machine()

    def full(minion: str) -> None:
        raise NetspaceError("no space left")

    with pytest.raises(NetspaceError, match="no space left"):
        replacing.replace(fleet.declared, "h2", fleet.root, lambda minion: fleet.machine, full, fleet.ask)
    assert fleet.declared.register.path("h2").exists() and "h2.netspace.internal" in fleet.root.given()


def test_what_is_no_request_counts_as_another_machine(fleet: Fleet) -> None:
    with pytest.raises(NetspaceError, match="is not a certificate request"):
        replacing._key("-----BEGIN")
    with pytest.raises(NetspaceError, match="h9: not a host of the fleet"):
        replacing.replace(
            fleet.declared, "h9", fleet.root, lambda minion: fleet.machine, fleet.released.append, fleet.ask
        )


@pytest.mark.parametrize(
    "found", [{"minion": "h2"}, {"error": "h2 is not enrolled, and no software key of it is known: nothing to release"}]
)
def test_a_tpm_that_is_not_known_needs_no_release(found: dict[str, str]) -> None:
    forget_tpm({"netspace_attestation.release": lambda minion: found}, "h2")
    with pytest.raises(NetspaceError, match="release h2: no space left"):
        forget_tpm({"netspace_attestation.release": lambda minion: {"error": "no space left"}}, "h2")
