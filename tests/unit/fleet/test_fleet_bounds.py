"""A fleet's files and keys under stress: two spellings of one key, two joins at once, damaged files, too much work."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.fleet.fleets import public_key, published, written

from netspace.errors import NetspaceError, StateError
from netspace.fleet import compile as compiler
from netspace.fleet import in_force, join_hosts, joining, leaving, place, public_keys
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.published import Register
from netspace.link.pki.root import Root

IMAGE = {"image": "tar:/srv/shop.tar"}
FLEET: dict[str, Any] = {
    "hosts": {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2"}},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
}


def spelled(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def spellings(key: bytes) -> list[str]:
    """Return other spellings of one X25519 key."""
    number = int.from_bytes(key, "little")
    found = [spelled((number | 1 << 255).to_bytes(32, "little"))]
    if number < 19:
        found.append(spelled((number + public_keys.PRIME).to_bytes(32, "little")))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = spelled(key)
    return [*found, text[:-1] + letters[letters.index(text[-1]) ^ 1]]


@given(st.integers(0, public_keys.PRIME - 1) | st.integers(0, 18))
def test_a_key_has_one_canonical_spelling(number: int) -> None:
    key = number.to_bytes(32, "little")
    assert public_keys.canonical(spelled(key)) == spelled(key)
    for other in spellings(key):
        assert other != spelled(key) and public_keys.same(other, spelled(key))
    assert not public_keys.same(spelled(key), spelled(((number + 1) % public_keys.PRIME).to_bytes(32, "little")))


def test_spellings_of_a_key_are_one_key_to_x25519() -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    own, key = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    for other in spellings(key):
        raw = base64.urlsafe_b64decode(f"{other}=")
        assert own.exchange(X25519PublicKey.from_public_bytes(raw)) == own.exchange(
            X25519PublicKey.from_public_bytes(key)
        )


@pytest.mark.parametrize("text", ["", "A", "A" * 42, "A" * 44, "é" * 43, "A" * 42 + "+"])
def test_a_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        public_keys.canonical(text)
    assert public_keys.same(text, text) and not public_keys.same(text, "A" * 43)


def test_another_spelling_of_a_hosts_key_is_that_hosts(tmp_path: Path) -> None:
    facts = published(["h1", "h2"], joined=1.0)
    key = base64.urlsafe_b64decode(f"{public_keys.canonical(public_key('h1'))}=")
    for other in spellings(key):
        facts["h2"] = msgspec.structs.replace(facts["h2"], public_key=other, joined=2.0)
        compiled = compiler.fleet({"fleet.yaml": FLEET}, facts, {}, {})
        assert compiled.missing[0].text.startswith("h2 has the key of h1")
        made = Register(tmp_path / other)
        made.write(facts["h1"])
        with pytest.raises(NetspaceError, match="the key is h1's"):
            made.write(facts["h2"])
        with pytest.raises(NetspaceError, match="another spelling"):
            joining._public_key(other, "h3", Register(tmp_path / "empty"))


def test_two_that_join_at_once_with_one_key_do_not_both_pass(tmp_path: Path) -> None:
    facts = published(["h1", "h2"])
    facts["h2"] = msgspec.structs.replace(facts["h2"], public_key=facts["h1"].public_key)
    for attempt in range(20):
        made, start, refused = Register(tmp_path / str(attempt) / "hosts"), threading.Barrier(2), list[str]()

        def write(name: str, made: Register = made, start: Any = start, refused: list[str] = refused) -> None:
            start.wait(60)
            try:
                made.write(facts[name])
            except NetspaceError as err:
                refused.append(str(err))

        threads = [threading.Thread(target=write, args=(name,)) for name in facts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(refused) == 1 == len(made.read_all()[0]), refused


def test_a_change_that_keeps_time_and_size_is_seen(tmp_path: Path) -> None:
    declared = fleet(tmp_path, FLEET)
    path = tmp_path / "fleet.yaml"
    before = path.stat()
    with path.open("r+") as stream:  # the same inode
        text = stream.read().replace("shop", "stop")
        stream.seek(0)
        stream.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    pillar = declared.answer("h1").pillar
    assert pillar is not None and pillar["netspace"]["environments"]["web"]["image"] == "tar:/srv/stop.tar"


def fleet(folder: Path, data: dict[str, Any]) -> FleetDeclaration:
    (folder / "fleet.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    declared = written(folder)
    for facts in published(["h1", "h2"]).values():
        declared.register.write(facts)
    assert declared.apply() is None
    return declared


def spread(folder: Path) -> tuple[FleetDeclaration, dict[str, Any], dict[str, tuple[str, ...]]]:
    """Return a fleet whose environments would move if it wasn't recorded where they run."""
    data: dict[str, Any] = {"hosts": {"h1": None}}
    data["environments"] = {f"e{number}": {"on": "h*", **IMAGE} for number in range(9)}
    declared = fleet(folder, data)
    data["hosts"] |= dict.fromkeys(["h2", "h3"])
    return declared, data, declared.store.placed()


def damage(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in (folder / "kept/compiled").glob(pattern):
            path.write_text("{")


@pytest.mark.parametrize("damaged", [("in-force.json",), ("placed-*.json",), ("in-force.json", "placed-*.json")])
def test_a_damaged_file_moves_no_environment(tmp_path: Path, damaged: tuple[str, ...]) -> None:
    declared, data, placed = spread(tmp_path)
    damage(tmp_path, *damaged)
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data))
    assert declared.apply() is None and declared.store.placed() == placed == dict.fromkeys(placed, ("h1",))


def test_placements_that_are_lost_move_nothing_and_are_told(tmp_path: Path) -> None:
    declared, data, _ = spread(tmp_path)
    damage(tmp_path, "placed-*")
    before = declared.answer("h1").pillar
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data))
    told: list[in_force.Refusal] = []
    declared._sources = declared._sources._replace(tell=told.append)
    assert declared.answer("h1").pillar == before
    assert "where environments run is damaged" in told[0].problems[0][2] and "in-force.json" in told[0].problems[0][2]
    with pytest.raises(StateError, match="placed anew"):
        declared.check()
    # A host leaves nevertheless, and what is damaged isn't taken for an answer afterwards.
    assert leaving.leave(declared, ["h2"], None)["h2"]["left"]
    with pytest.raises(StateError, match="placed anew"):
        declared.check()
    (tmp_path / "kept/compiled/in-force.json").unlink()
    declared.store.paused = 0.0
    assert declared.apply() is None and len(set(declared.store.placed().values())) > 1


def test_stamps_of_an_earlier_version_keep_placements(tmp_path: Path) -> None:
    declared, data, placed = spread(tmp_path)
    path = tmp_path / "kept/compiled/in-force.json"
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["inputs"]["files"] = {name: stamp and stamp[:3] for name, stamp in manifest["inputs"]["files"].items()}
    path.write_bytes(msgspec.json.encode(manifest))
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data))
    assert declared.store.current().manifest is not None
    assert declared.apply() is None and declared.store.placed() == placed


@pytest.mark.parametrize(
    ("limit", "module", "data", "path"),
    [
        ("MAX_CHOICES", compiler,
         {"environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": ["h2", "h3"], "replicas": 2, **IMAGE}}},
         "links:0"),
        ("MAX_SCORES", place, {"environments": {"web": {"on": ["h1", "h3"], **IMAGE}, "db": {"on": "h2", **IMAGE}}},
         "environments:web:on"),
        ("MAX_PROOFS", compiler, {"never": [{"from": "db", "to": "web"}]}, "never:0"),
        ("MAX_EDGES", compiler, {"never": [{"from": "db", "to": "web"}]}, "never:0"),
    ],
)  # fmt: skip
def test_work_without_a_bound_is_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, module: Any, data: dict[str, Any], path: str
) -> None:
    data = {**FLEET, **data, "hosts": {**FLEET["hosts"], "h3": {"address": "198.51.100.3"}}}
    assert compiler.fleet({"fleet.yaml": data}, {}, {}, {}).problems == ()
    monkeypatch.setattr(module, limit, 0)
    found = compiler.fleet({"fleet.yaml": data}, {}, {}, {}).problems
    assert path in [one.path for one in found], found


def test_a_declaration_that_changes_during_a_join_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = fleet(tmp_path, FLEET)
    apply: Callable[[], Any] = declared.apply

    def changed() -> Any:
        found = apply()
        data = {
            **FLEET,
            "hosts": {"h1": FLEET["hosts"]["h1"]},
            "links": [],
            "environments": {"web": {"on": "h1", **IMAGE}},
        }
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data))
        return found

    monkeypatch.setattr(declared, "apply", changed)
    monkeypatch.setattr(joining, "join", lambda *_: joining.Joined({}, []))
    found = join_hosts.join(declared, ["h1", "h2"], Root(tmp_path / "root"), lambda minion: None, lambda *_: {})  # type: ignore[arg-type,return-value]
    assert found["h1"]["missing"] == []
    assert found["h2"]["missing"] == ["the declaration of h2 changed meanwhile; join again if it is still a host"]
