"""A fleet's declaration on the master's disk: what is in force, what is refused, and when it is compiled again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import published, written

from netspace.errors import NetspaceError, StateError
from netspace.fleet import in_force
from netspace.fleet import published as register
from netspace.fleet.declaration import FleetDeclaration, Sources
from netspace.fleet.published import Register
from netspace.fleet.types import Published

IMAGE = {"image": "tar:/srv/shop.tar"}
GOOD: dict[str, Any] = {
    "hosts": {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2"}},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
}
WRONG = {**GOOD, "links": [{"from": "web", "to": "dbb"}]}


@pytest.fixture
def declared(tmp_path: Path) -> FleetDeclaration:
    write(tmp_path, GOOD)
    return written(tmp_path)


def write(folder: Path, data: Any, name: str = "fleet.yaml") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of compilations so far, as the length of a list."""
    done: list[int] = []
    whole: Callable[..., Any] = FleetDeclaration._compile

    def counted(self: FleetDeclaration, **more: Any) -> Any:
        done.append(1)
        return whole(self, **more)

    monkeypatch.setattr(FleetDeclaration, "_compile", counted)
    return done


def environments(declared: FleetDeclaration, minion: str = "h1") -> list[str]:
    pillar = declared.answer(minion).pillar
    assert pillar is not None
    return list(pillar["netspace"].get("environments", {}))


def test_a_slice_is_compiled_once_for_all(declared: FleetDeclaration, tmp_path: Path, compiled: list[int]) -> None:
    assert environments(declared) == ["web"]
    assert environments(written(tmp_path), "h2") == ["db"]
    assert written(tmp_path).answer("stranger") == (None, None)
    assert len(compiled) == 1


def test_a_change_of_any_input_is_compiled(declared: FleetDeclaration, tmp_path: Path, compiled: list[int]) -> None:
    write(tmp_path, {**GOOD, "include": ["more/more.yaml"], "uses": ["words.jinja"]})
    write(tmp_path, {"environments": {"log": {"on": "h1", **IMAGE}}}, "more/more.yaml")
    write(tmp_path, " ", "words.jinja")
    assert environments(declared) == ["web", "log"]
    changes: list[Callable[[], object]] = [
        lambda: write(tmp_path, {"environments": {"till": {"on": "h1", **IMAGE}}}, "more/more.yaml"),
        lambda: write(tmp_path, "", "words.jinja"),
        lambda: declared.register.write(published(["h1"])["h1"]),
        lambda: write(tmp_path, {**GOOD, "include": ["more/more.yaml"]}),
    ]  # fmt: skip
    for count, change in enumerate(changes, 2):
        change()
        assert environments(declared) == ["web", "till"]
        assert len(compiled) == count
    nodegroups = FleetDeclaration(declared.root, tmp_path / "kept", declared._sources, {"edge": "h1"})
    assert environments(nodegroups) and len(compiled) == len(changes) + 2


def test_what_is_wrong_leaves_the_last_good_one(
    declared: FleetDeclaration, tmp_path: Path, compiled: list[int]
) -> None:
    assert environments(declared) == ["web"]
    write(tmp_path, WRONG)
    answer = declared.answer("h1")
    assert answer.pillar is not None and answer.alarm is not None
    assert answer.alarm.problems == (
        (str(tmp_path / "fleet.yaml"), "links:0:to", "no environment is called 'dbb'; did you mean db?"),
    )
    assert written(tmp_path).answer("h1").alarm is None  # told once
    assert len(compiled) == 2
    write(tmp_path, {**GOOD, "environments": {**GOOD["environments"], "log": GOOD["environments"]["web"]}})
    assert environments(declared) == ["web", "log"]
    assert declared.store.current().refusal is None


def test_the_former_file_again_is_in_force_again(declared: FleetDeclaration, tmp_path: Path) -> None:
    environments(declared)
    os.rename(tmp_path / "fleet.yaml", tmp_path / "aside")
    assert (refusal := declared.apply()) is not None and "there is no such file" in refusal.problems[0][2]
    os.rename(tmp_path / "aside", tmp_path / "fleet.yaml")
    assert declared.apply() is None


def test_without_any_good_one_a_minion_learns_nothing(declared: FleetDeclaration, tmp_path: Path) -> None:
    write(tmp_path, WRONG)
    with pytest.raises(NetspaceError) as raised:
        declared.answer("h1")
    assert "dbb" not in str(raised.value) and "web" not in str(raised.value)


def test_a_check_puts_nothing_in_force(declared: FleetDeclaration, tmp_path: Path) -> None:
    assert declared.check().problems == ()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ({"include": ["../fleet.yaml"]}, "include:0", "or below"),
        ({"include": ["/etc/passwd"]}, "include:0", "or below"),
        ({"include": ["salt://a"]}, "include:0", "or below"),
        ({"include": "more.yaml"}, "include", "expected a list"),
        ({"include": ["more.yaml"]}, "", "there is no such file"),
        ({"uses": ["words.jinja"]}, "uses:0", "words.jinja: there is no such file"),
        ("{", "", "ParserError"),
        ("- a", "", "expected a mapping, got list"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: Any, path: str, reason: str) -> None:
    write(tmp_path, data)
    problems = written(tmp_path).check().problems
    assert any(one.path == path and reason in one.reason for one in problems), problems


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, {**GOOD, "include": ["b.yaml"]})
    write(tmp_path, {"include": ["fleet.yaml"]}, "b.yaml")
    assert written(tmp_path).check().problems == ()


def test_a_placement_stays_though_hosts_are_added(tmp_path: Path) -> None:
    data: dict[str, Any] = {"hosts": {"h1": None}}
    data["environments"] = {f"e{number}": {"on": "h*", **IMAGE} for number in range(9)}
    write(tmp_path, data)
    declared = written(tmp_path)
    assert len(environments(declared)) == 9
    data["hosts"] |= dict.fromkeys(["h2", "h3"])
    write(tmp_path, data)
    assert len(environments(declared)) == 9
    (tmp_path / "kept/compiled/in-force.json").unlink()  # without a memory they are where the scores lead
    assert 0 < len(environments(declared)) < 9


def test_killed_between_any_two_steps_one_of_the_two_is_in_force(
    declared: FleetDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments(declared)
    data = {**GOOD, "environments": {**GOOD["environments"], "log": GOOD["environments"]["web"]}}
    step, real = 0, {name: getattr(in_force.files, name) for name in ("write", "remove")}

    class Killed(BaseException):
        pass

    def killing(name: str) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            nonlocal step
            step -= 1
            if step < 0:
                raise Killed
            return real[name](*arguments)

        return work

    for name in real:
        monkeypatch.setattr(in_force.files, name, killing(name))
    for last in range(20):
        step = 99
        write(tmp_path, GOOD)
        assert environments(declared) == ["web"]
        write(tmp_path, data)
        step = last
        try:
            found = environments(written(tmp_path))
        except Killed:
            step = 0  # what is in force is read without a write, but it is older than the files
            current = declared.store.current().manifest
            assert current is not None
            pillar = declared.store.slice(current, "h1")
            assert pillar is not None and list(pillar["netspace"]["environments"]) in (["web"], ["web", "log"])
        else:
            assert found == ["web", "log"]
            break
    else:
        pytest.fail("never done")


def test_what_is_in_force_is_readable_by_its_owner_alone(declared: FleetDeclaration, tmp_path: Path) -> None:
    environments(declared)
    for path in (tmp_path / "kept").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_damaged_files_are_made_again(declared: FleetDeclaration, tmp_path: Path) -> None:
    environments(declared)
    for path in (tmp_path / "kept/compiled").glob("*.json"):
        path.write_text("{")
    assert environments(declared) == ["web"]


def test_a_file_server_names_and_finds_files(tmp_path: Path) -> None:
    write(tmp_path, {**GOOD, "include": ["more.yaml"]}, "fleet/init.yaml")
    write(tmp_path, {"environments": {"log": {"on": "h1", **IMAGE}}}, "fleet/more.yaml")
    asked: list[str] = []

    def find(name: str) -> str | None:
        asked.append(name)
        path = tmp_path / name.removeprefix("salt://")
        return str(path) if path.exists() else None

    sources = Sources(find, lambda path: yaml.safe_load(Path(path).read_text()))
    declared = FleetDeclaration("salt://fleet/init.yaml", tmp_path / "kept", sources, {})
    assert environments(declared) == ["web", "log"]
    assert {"salt://fleet/init.yaml", "salt://fleet/more.yaml"} == set(asked)
    os.rename(tmp_path / "fleet/more.yaml", tmp_path / "fleet/gone.yaml")
    assert declared.apply() is not None


def test_a_damaged_record_changes_nothing_and_is_named(declared: FleetDeclaration) -> None:
    declared.register.write(published(["h1"])["h1"])
    before = declared.answer("h1").pillar
    declared.register.write(published(["h2"])["h2"])
    declared.register.path("h1").write_text("{")
    answer = declared.answer("h1")
    assert answer.pillar == before and answer.alarm is not None and "h1.json" in answer.alarm.problems[0][2]


# -- what hosts have published ----------------------------------------------------------
def test_what_is_published_is_read_back_and_written_once(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts")
    facts = published(["h1"], level="L3", grains={"role": "web"}, joined=1.0)["h1"]
    assert register.write(facts) and register.read("h1") == facts
    later = Published(**{name: getattr(facts, name) for name in facts.__struct_fields__} | {"joined": 2.0})
    assert not register.write(later)
    assert register.remove("h1") and not register.remove("h1")
    assert register.read_all() == ({}, [])


@settings(max_examples=40, deadline=None)
@given(st.text("ab./\\%\0é ", min_size=1, max_size=300))
def test_no_minions_id_leads_out_of_the_folder(name: str) -> None:
    path = Register(Path("/srv/hosts")).path(name)
    assert path.parent == Path("/srv/hosts") and path.name.endswith(".json") and len(path.name) < 256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("public_key", "x"), ("public_key", 1), ("trust_domain", "h1"), ("chain", "ä"), ("chain", "x" * 20_000),
        ("level", "L9"), ("grains", {"a": "b" * 300}), ("grains", {"a": 1}), ("more", 1), ("version", 2),
        ("minion", "h2"),
    ],
)  # fmt: skip
def test_malformed_facts_are_refused_and_named(tmp_path: Path, key: str, value: Any) -> None:
    register = Register(tmp_path / "hosts")
    register.write(published(["h1"])["h1"])
    path = register.path("h1")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    found, problems = register.read_all()
    assert found == {} and len(problems) == 1 and str(path) in problems[0]
    if key != "minion":
        with pytest.raises(StateError):
            register.read("h1")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_facts_or_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(raw)
    with pytest.raises(StateError):
        register._read(path)


def test_facts_that_cannot_be_are_not_stored(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts")
    with pytest.raises(NetspaceError, match="not a public key"):
        register.write(Published(minion="h1", trust_domain="h1.example.org", chain="", public_key="x\n"))
    assert not (tmp_path / "hosts").exists()


# -- a file that is caught half-written -------------------------------------------------
def test_an_environment_that_was_gone_returns_to_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: dict[str, Any] = {"hosts": {"h1": None}}
    whole["environments"] = {f"e{number}": {"on": "h*", **IMAGE} for number in range(9)}
    write(tmp_path, whole)
    declared = written(tmp_path)
    assert len(environments(declared)) == 9
    cut = {**whole, "hosts": dict.fromkeys(["h1", "h2", "h3"]), "environments": {"e0": whole["environments"]["e0"]}}
    for known in (True, False):
        write(tmp_path, cut)
        assert environments(declared) == ["e0"]
        write(tmp_path, {**cut, "links": []})  # another generation in between
        assert environments(declared) == ["e0"] and declared.check().moves == ()
        if not known:
            monkeypatch.setattr(in_force, "REMEMBERED", 0)
        write(tmp_path, {**cut, "environments": whole["environments"]})
        assert (len(environments(declared)) == 9) is known


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ""), ("{}", ""), ("hosts:\n", "hosts"), ("hosts: {h1: }\nenvironments:\n", "environments"),
        ("hosts: {h1: }\n", "environments"), ("environments: {}\n", "hosts"),
        ("hosts: {h1: }\nenvironments: {}\nlinks:\n", "links"),
    ],
)  # fmt: skip
def test_what_a_cut_off_file_would_remove_is_refused(
    declared: FleetDeclaration, tmp_path: Path, text: str, path: str
) -> None:
    assert environments(declared) == ["web"]
    write(tmp_path, text)
    assert (refusal := declared.apply()) is not None and path in [one[1] for one in refusal.problems]
    assert environments(declared) == ["web"]
    write(tmp_path, "hosts: {}\nenvironments: {}\n")  # it's meant
    assert declared.apply() is None and declared.answer("h1").pillar is None


def test_a_file_that_changed_a_moment_ago_waits(
    declared: FleetDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[int]
) -> None:
    environments(declared)
    monkeypatch.setattr(in_force, "UNCHANGED", 3600 * 10**9)
    more = {**GOOD, "include": ["more.yaml"]}
    write(tmp_path, more)
    write(tmp_path, {"environments": {"log": {"on": "h1", **IMAGE}}}, "more.yaml")
    assert environments(declared) == ["web"] and len(compiled) == 1
    declared.register.write(published(["h1"])["h1"])
    assert environments(declared) == ["web"] and len(compiled) == 1
    assert list(declared.check().placed) == ["web", "db", "log"]  # at once
    os.utime(tmp_path / "fleet.yaml", (1, 1))
    assert environments(declared) == ["web"]  # the other file may be half-written
    rest = time.sleep

    def sleep(seconds: float) -> None:
        """Stand in for ``time.sleep``: return at once from an hour's sleep, after setting the file's time back.

        Shorter sleeps take their full time, since they wait for the kernel's clock.
        """
        if seconds < 3600:
            rest(seconds)
        else:
            os.utime(tmp_path / "more.yaml", (1, 1))

    monkeypatch.setattr("time.sleep", sleep)
    assert declared.apply() is None and environments(declared) == ["web", "log"]


def test_files_that_go_on_changing_are_not_put_in_force(
    declared: FleetDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments(declared)
    monkeypatch.setattr(in_force, "UNCHANGED", 3600 * 10**9)
    write(tmp_path, WRONG)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(NetspaceError, match="keeps changing; try again later"):
        declared.apply()
