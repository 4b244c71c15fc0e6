"""The library's copy on the host's disk."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from vmlab import image

import netspace
from netspace import REQUIREMENTS, library_copy
from netspace.__main__ import main
from netspace.layout import Layout


def test_installed_once_and_exact(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    assert library_copy.installed(layout) == ""
    assert library_copy.install(layout)
    assert not library_copy.install(layout)
    copy = layout.library / "current" / "netspace"
    sources = {path.relative_to(library_copy.source()) for path in library_copy.source().rglob("*.py")}
    assert {path.relative_to(copy) for path in copy.rglob("*.py")} == sources
    assert all((copy / name).read_bytes() == (library_copy.source() / name).read_bytes() for name in sources)
    assert len(library_copy.installed(layout)) == 32
    library_copy.remove(layout)
    assert not layout.library.exists()


def test_an_unchanged_library_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, layout, read = tmp_path / "origin", Layout(root=tmp_path), []
    origin.mkdir()
    (origin / "a.py").write_text("A = 1")
    contents = library_copy._contents
    monkeypatch.setattr(library_copy, "source", lambda: origin)
    monkeypatch.setattr(library_copy, "_contents", lambda files: read.append(len(files)) or contents(files))
    monkeypatch.setattr(library_copy, "_SETTLED", 0.0)

    def in_another_process() -> bool:
        monkeypatch.setattr(library_copy, "_known", ({}, ""))
        return library_copy.install(layout)

    assert in_another_process()
    first = library_copy.installed(layout)
    assert not in_another_process()
    assert read == [1]
    (origin / "a.py").write_text("A = 2")  # in place, and of the same size
    os.utime(origin / "a.py", (1, 1))
    assert in_another_process()
    assert library_copy.installed(layout) != first
    monkeypatch.setattr(library_copy, "_SETTLED", 3600.0)
    (layout.library / "current" / "source").unlink()
    assert not in_another_process()
    assert not in_another_process()
    assert read == [1, 1, 1, 1], "a file of just now may change again, and look the same"


def test_what_comes_is_known_without_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, layout = tmp_path / "origin", Layout(root=tmp_path)
    origin.mkdir()
    (origin / "a.py").write_text("A = 1")
    monkeypatch.setattr(library_copy, "source", lambda: origin)
    first = library_copy.coming(layout)
    assert not layout.library.exists()
    library_copy.install(layout)
    assert library_copy.installed(layout) == first == library_copy.coming(layout)
    (origin / "b.py").write_text("B = 1")
    second = library_copy.coming(layout)
    assert library_copy.installed(layout) == first != second
    assert library_copy.install(layout)
    assert library_copy.installed(layout) == second
    (layout.library / "current" / "__main__.py").unlink()  # a damaged copy is made again
    assert library_copy.coming(layout) == second
    assert library_copy.install(layout)
    assert (layout.library / "current" / "__main__.py").exists()


def test_a_changed_one_is_switched_to_and_two_versions_stay(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    library_copy.install(layout)
    present = library_copy.installed(layout)
    for old in ("older", "old"):
        (layout.library / old).mkdir()
        (layout.library / "current").unlink()
        (layout.library / "current").symlink_to(old)
    assert library_copy.install(layout)
    assert library_copy.installed(layout) == present
    assert sorted(os.listdir(layout.library)) == sorted([present, "old", "current"])


def test_the_command_runs_the_copy_whatever_the_environment_says(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    library_copy.install(layout)
    (tmp_path / "argparse.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [*library_copy.command(layout), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "supervise" in done.stdout and "restore" in done.stdout


def test_the_command_names_another_instance(tmp_path: Path) -> None:
    layout = Layout("lab", root=tmp_path)
    assert library_copy.command(layout, "restore")[-3:] == ("--instance", "lab", "restore")
    assert library_copy.command(layout)[0] == sys.executable


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["--instance", "No Such", "restore"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as err:
        main(arguments)
    assert err.value.code == 1
    assert "--help" in capsys.readouterr().err


# -- what it needs -----------------------------------------------------------------------------------
ROOT = Path(__file__).parents[2]


def test_requirements_are_equal_wherever_they_are_named() -> None:
    """Requirements are equal in pyproject.toml (for pip), packages.yaml (for the SLS) and REQUIREMENTS (for errors)."""
    section = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert section is not None
    declared: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for line in re.findall(r'^    "(.*)",$', section[1], re.MULTILINE):
        requirement, _, marker = line.partition("; ")
        for old in (True, False):
            if marker in ("", f"python_version {'<' if old else '>='} '3.11'"):
                declared[old][re.split(r"[<>=]", requirement)[0]] = requirement
    packages = yaml.safe_load((ROOT / "states/netspace/packages.yaml").read_text())
    assert sorted(declared[False].values()) == packages["python"] == sorted(packages["python"])
    assert sorted(declared[True].values()) == sorted(
        {re.split(r"[<>=]", one)[0]: one for one in packages["python"] + packages["python-3.10"]}.values()
    )
    module = {"dnspython": "dns"}  # where its name isn't the package's
    here = {module.get(name, name): requirement for name, requirement in declared[sys.version_info < (3, 11)].items()}
    assert here == REQUIREMENTS
    assert sorted(REQUIREMENTS) == list(library_copy.DEPENDENCIES)
    assert sorted(REQUIREMENTS) == [module.get(name, name) for name in image.DEPENDENCIES]


def test_module_of_salt_is_no_package_that_is_needed(tmp_path, monkeypatch):
    (tmp_path / "needed_here.py").write_text("")
    (tmp_path / "needed_too").mkdir()
    (tmp_path / "needed_too/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert [netspace._installed(name) for name in ("needed_here", "needed_too", "needed_never")] == [False, True, False]
    monkeypatch.setitem(sys.modules, "needed_too", importlib.import_module("needed_here"))
    assert netspace._installed("needed_too"), "as soon as it is there"
