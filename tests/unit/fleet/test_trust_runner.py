"""The runner ``netspace_trust`` with Salt's own look-up of accepted keys; only the bus is replaced."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import salt.config
import yaml
from support import checkout
from support.fleet.fleets import published, written
from support.returns import times_without_text

from netspace.fleet import trust, trust_watch
from netspace.plugin import salt_keys

FLEET = {
    "defaults": {"attestation": {"verifier": "master", "verifier_keys": ["A" * 43]}},
    "hosts": {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2"}},
    "environments": {name: {"on": host, "image": "tar:/srv/shop.tar"} for name, host in (("web", "h1"), ("db", "h2"))},
    "links": [{"from": "web", "to": "db"}],
}


class Scene:
    """A master with the fleet above, and a runner whose minions confirm every message."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("trust_runner", checkout.ROOT / "_runners/netspace_trust.py")
        assert spec is not None and spec.loader is not None
        self.runner: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.runner)
        self.keys = folder / "pki/minions"
        self.keys.mkdir(parents=True)
        for minion in ("h1", "h2"):
            (self.keys / minion).write_text("a key")
        (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET, sort_keys=False))
        self.declared = written(folder)
        for facts in published(["h1", "h2"]).values():
            self.declared.register.write(facts)
        assert self.declared.apply() is None
        self.results = dict.fromkeys(("h1", "h2"), "trusted")
        self.attested: list[tuple[list[str], str]] = []
        self.told: list[set[str]] = []
        self.attest: Callable[[], dict[str, Any]] = dict
        self.runner.__opts__ = {
            **salt.config.DEFAULT_MASTER_OPTS,
            "pki_dir": str(folder / "pki"),
            "cachedir": str(folder / "cache"),
        }
        self.runner.__salt__ = {
            "netspace_attestation.states": lambda minions: {
                minion: {
                    "state": self.results[minion],
                    "code": "",
                    "reason": "its last result",
                    "level": "L3",
                    "deadline": None,
                }
                for minion in minions
            },
            "netspace_attestation.attest": self._attest,
        }
        self.runner._declaration = lambda: self.declared
        minions, scene = self.runner._minions(), self

        class Minions(type(minions)):  # type: ignore[misc]
            def ask_at_once(
                self, function: str, calls: Sequence[tuple[Collection[str], Mapping[str, Any]]], timeout: float
            ) -> dict[str, Any]:
                scene.told += [set(minions) for minions, _ in calls]
                return {minion: [] for minions, _ in calls for minion in minions}

        minions.__class__ = Minions
        self.runner._minions = lambda: minions
        self.runner._Master.tell = lambda self, event, data: None

    def _attest(self, target: list[str], tgt_type: str) -> dict[str, Any]:
        self.attested.append((target, tgt_type))
        return self.attest()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_silent_host_that_deletes_its_key_is_cut(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent host revokes its own Salt key (``auth.revoke``), and still loses its links."""
    scene.results["h2"] = "stale"
    scene.attest = lambda: {"valid": False, "reason": "no minion matches ['h2']", "retcode": 1}
    (scene.keys / "h2").unlink()
    now = [trust_watch.time.time()]
    monkeypatch.setattr(trust_watch.time, "time", lambda: now[0])
    looked = scene.runner.look()
    assert list(looked["asked_again"]) == ["h2"] and list(looked["asked_again_at"]) == ["h2"]
    for _ in range(2):
        now[0] += trust.GRACE / 2
        found = scene.runner.look()
    assert found["distrusted"]["h2"]["kind"] == "expired" and found["waiting"] == {} and scene.attested == []
    assert not list(times_without_text("netspace_trust.look", found)) and found["distrusted"]["h2"]["since_at"]


def test_silent_hosts_with_a_key_are_attested_again(scene: Scene) -> None:
    scene.results = dict.fromkeys(("h1", "h2"), "stale")
    (scene.keys / "h2").unlink()
    assert set(scene.runner.look()["asked_again"]) == {"h1", "h2"} and scene.attested == [(["h1"], "list")]


def test_an_attestation_that_fails_keeps_nobody_untold(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    book = scene.declared.trust
    with book.looking():
        book.write(trust.to_wait(book.read(), {"h1": ["h2"]}))
    scene.results["h2"] = "stale"
    scene.attest = lambda: {"valid": False, "reason": "the master can't be reached", "retcode": 1}
    found = scene.runner.look()
    assert (
        found["waiting"] == {trust_watch.ATTEST: "netspace_attestation.attest: the master can't be reached"}
        and found["retcode"] == 1
    )
    assert scene.told == [{"h1"}] and book.read().waiting == {}
    now = trust_watch.time.time() + trust.GRACE + 1
    monkeypatch.setattr(trust_watch.time, "time", lambda: now)
    assert scene.runner.look()["distrusted"] == {}, "nobody was asked, so nobody was silent"


def test_keys_that_cannot_be_read_are_not_missing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Salt's keys can't be read, which Salt treats as an empty list: no host loses its links because of that."""

    def unreadable(opts: Mapping[str, Any], minion: str, valid_id: Any, cache: Any) -> bytes | None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(salt_keys, "accepted", unreadable)
    scene.results["h2"] = "stale"
    found = scene.runner.look()
    assert "h2: its accepted key can't be read" in found["waiting"][trust_watch.ATTEST] and scene.attested == []
