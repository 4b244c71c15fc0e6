"""Damaged files of netspace, and traps at its paths: each is reported or repaired, and no link is followed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import faultpoints, faults_host
from support.hosts.faults_host import LAYOUT, Declared, World

from netspace import files

pytestmark = pytest.mark.root

DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "of another type": lambda path: path.write_bytes(b"[1, 2]\n"),
    "null": lambda path: path.write_bytes(b"null\n"),
    "of another kind": lambda path: path.write_bytes(b'{"version": 1, "name": 7}\n'),
    "not text": lambda path: path.write_bytes(bytes(range(256))),
    "huge": lambda path: path.write_bytes(b'{"a": "' + b"x" * (files.MAX_RECORD + 1) + b'"}'),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    faults_host.warm_up()
    with World(tmp_path_factory.mktemp("damage"), linked=False) as made:
        yield made
        assert teardown() == []


@pytest.fixture
def declared(world: World) -> Declared:
    wanted = world.declared()
    wanted["attestation"] = {"policy": "prefer", "minimum": "L0"}
    assert converge(wanted) == []
    return wanted


def converge(declared: Declared) -> list[str]:
    done = faultpoints.run(lambda: faults_host.converge(declared), traced=False)
    assert done.error == ""
    errors: list[str] = done.value["errors"]
    return errors


def teardown() -> list[str]:
    done = faultpoints.run(faults_host.teardown, traced=False)
    assert done.error == ""
    errors: list[str] = done.value["errors"]
    return errors


def records() -> list[Path]:
    """Return all records of netspace: every JSON file except files for environments."""
    found = [path for folder in (LAYOUT.state, LAYOUT.run) for path in folder.rglob("*.json")]
    return sorted(
        path
        for path in found
        if path.is_file() and not {"handout", "inside", "crun"} & set(path.parts) and LAYOUT.library not in path.parents
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_repaired_or_named_with_the_remedy(declared: Declared, damage: str) -> None:
    tried = records()
    assert len(tried) >= 10, tried
    for path in tried:
        if not path.exists():
            continue  # it went with another's repair
        good = path.read_bytes()
        DAMAGES[damage](path)
        damaged = path.read_bytes()
        errors = converge(declared)
        if errors:
            # All that fails names the file, and says what to do.
            for error in errors:
                assert str(path) in error, (path, error)
                assert "remove" in error, (path, error)
                assert len(error) < 600
            path.unlink()
            for error in converge(declared):
                # Without its record a link is anybody's: the operator says that it may go.
                assert path.parent.name == "interfaces", (path, error)
                found = re.search(
                    r"the host has a network device (\S+) that netspace didn't make; remove or rename it", error
                )
                assert found, error
                subprocess.run(["ip", "link", "del", found[1]], check=True)
            assert converge(declared) == [], path
        elif path.exists() and path.read_bytes() == damaged:
            path.write_bytes(good)  # nobody needed it now
        planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
        assert planned.value == {"steps": [], "errors": []}, path


def test_a_link_planted_where_we_write_is_not_followed(world: World) -> None:
    """Symlinks lie at paths to which netspace writes. An apply doesn't change their target, and then succeeds."""
    assert teardown() == []
    target = world.others / "file"
    before = (target.read_bytes(), *_marks(target))
    planted = [
        LAYOUT.state / "lock",
        LAYOUT.records("environments") / "a.json",
        LAYOUT.records("interfaces") / "a.json",
        LAYOUT.run / "supervisor.lock",
        LAYOUT.run / "network.json",
        LAYOUT.logs / "environment-a.log",
        LAYOUT.logs / "supervisor.log",
        LAYOUT.bundle("a") / "config.json",
        LAYOUT.bundle("a") / "pid",
        LAYOUT.netns("a"),
    ]
    declared = world.declared()
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        converge(declared)
        assert (target.read_bytes(), *_marks(target)) == before, path
        path.unlink(missing_ok=True) if path.is_symlink() else None
        assert converge(declared) == [], path
        assert teardown() == [], path
        assert (target.read_bytes(), *_marks(target)) == before, path


def _marks(path: Path) -> tuple[int, ...]:
    info = path.stat()
    return info.st_ino, info.st_mode, info.st_uid, info.st_mtime_ns
