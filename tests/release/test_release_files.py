"""The content of wheels, sdists and bills of materials."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from support import checkout

from netspace import REQUIREMENTS, __version__


def wheel(dist: Path, name: str) -> zipfile.ZipFile:
    (found,) = dist.glob(f"{name}-*.whl")
    return zipfile.ZipFile(found)


def test_wheel_holds_library_plugins_and_sls(dist: Path) -> None:
    held = {name for name in wheel(dist, "netspace").namelist() if ".dist-info/" not in name}
    library, root = checkout.ROOT / "_utils", checkout.ROOT
    wanted = {str(path.relative_to(library)) for path in library.rglob("*.py")}
    for folder in checkout.PLUGIN_FOLDERS:
        plugins = [path for path in (root / folder).rglob("*.py") if path.name != "__init__.py"]
        wanted |= {f"netspace/{folder[1:]}/{path.relative_to(root / folder)}" for path in plugins}
    wanted |= {f"netspace/sls/netspace/{path.name}" for path in (root / "states/netspace").iterdir()}
    assert wanted - held == set()
    strange = {name for name in held - wanted if not name.endswith("/__init__.py")}
    assert strange == set()


def test_wheel_of_the_client_holds_each_module(dist: Path) -> None:
    held = {name for name in wheel(dist, "netspace_client").namelist() if ".dist-info/" not in name}
    source = checkout.ROOT / "client/src"
    assert held == {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".py", ".typed")}


@pytest.mark.parametrize(("name", "source"), [("netspace", "."), ("netspace_client", "client")])
def test_sdist_holds_each_module(dist: Path, name: str, source: str) -> None:
    """A wheel built from the sdist has the same modules as the wheel of the release."""
    root = checkout.ROOT / source
    with tarfile.open(dist / f"{name}-{__version__}.tar.gz") as archive:
        held = {path.partition("/")[2] for path in archive.getnames()}
    folders = ("src",) if source == "client" else ("_utils", "states/netspace", *checkout.PLUGIN_FOLDERS)
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    wanted = {
        str(path.relative_to(root))
        for path in files
        # Only Salt's loader needs a folder of plugins to be a package.
        if path.suffix in (".py", ".sls", ".jinja", ".yaml", ".typed") and "__pycache__" not in path.parts
    }
    assert wanted - held == set()


@pytest.mark.parametrize("name", ["netspace", "netspace_client"])
def test_wheel_names_version_licence_and_addresses(dist: Path, name: str) -> None:
    archive = wheel(dist, name)
    info = f"{name}-{__version__}.dist-info"
    said = archive.read(f"{info}/METADATA").decode()
    assert re.search(rf"^Version: {re.escape(__version__)}$", said, re.MULTILINE)
    assert "License-Expression: Apache-2.0" in said
    assert len(re.findall("^Project-URL: ", said, re.MULTILINE)) == 4
    assert f"{info}/licenses/LICENSE" in archive.namelist()


@pytest.mark.parametrize("name", ["netspace", "netspace_client"])
def test_links_of_a_readme_work_on_an_index(dist: Path, name: str) -> None:
    """Each link of README is an address or leads to a heading of README, since a package index shows only this page."""
    said = wheel(dist, name).read(f"{name}-{__version__}.dist-info/METADATA").decode()
    links = re.findall(r"\]\(([^)]+)\)", said)
    assert any("/docs/" in link for link in links)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_wheel_tells_salt_of_its_plugins(dist: Path) -> None:
    said = wheel(dist, "netspace").read(f"netspace-{__version__}.dist-info/entry_points.txt").decode()
    assert said.split("\n")[:2] == ["[salt.loader]", "netspace = netspace:loader_dirs"]


@pytest.mark.parametrize("name", ["netspace", "netspace_client"])
def test_sdist_holds_nothing_of_the_builder(dist: Path, name: str) -> None:
    with tarfile.open(dist / f"{name}-{__version__}.tar.gz") as archive:
        members = archive.getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname) for one in members} == {(0, 0, "", "")}
    assert len({one.mtime for one in members}) == 1
    assert {one.mode for one in members} <= {0o644, 0o755}
    assert [one.name for one in members] == sorted(one.name for one in members)


def test_sdist_holds_docs_and_changelog(dist: Path) -> None:
    with tarfile.open(dist / f"netspace-{__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "SECURITY.md", "pillar.example", "docs/conf.py", "contrib/ansible/netspace.py"} <= held
    assert not {name for name in held if "__pycache__" in name or name.startswith(("docs/_build", ".cache", ".venv"))}


def test_bill_of_materials_names_each_dependency(dist: Path) -> None:
    document = json.loads((dist / f"netspace-{__version__}.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    named = {one["name"]: one["version"] for one in document["components"]}
    wanted = {re.split("[<>=]", requirement)[0] for requirement in REQUIREMENTS.values()}
    assert wanted <= named.keys() and all(named.values())
    assert str(checkout.ROOT) not in json.dumps(document)


def test_sums_name_each_file(dist: Path) -> None:
    named = {line.split("  ")[1] for line in (dist / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in dist.iterdir()} - {"SHA256SUMS"}


def test_fragments_become_a_version_of_the_changelog(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(checkout.ROOT / name, tmp_path)
    (tmp_path / "changelog.d").mkdir()
    for name in ("README.md", "template.jinja"):
        shutil.copy(checkout.ROOT / "changelog.d" / name, tmp_path / "changelog.d")
    (tmp_path / "changelog.d/images.fixed.md").write_text("The newest image is first.\nIt was not.\n")
    (tmp_path / "changelog.d/text.added.md").write_text("An output for text.\n")
    towncrier = checkout.ROOT / ".cache/release-tools/bin/towncrier"
    command = [towncrier, "build", "--yes", "--version", "9.9.9", "--date", "2030-01-01"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "CHANGELOG.md").read_text()
    wanted = (
        "## [9.9.9] - 2030-01-01\n\n### Added\n\n- An output for text.\n\n"
        "### Fixed\n\n- The newest image is first.\n  It was not.\n"
    )
    assert wanted in text and text.index(wanted) < text.index("## [Unreleased]")
    assert sorted(path.name for path in (tmp_path / "changelog.d").iterdir()) == ["README.md", "template.jinja"]
