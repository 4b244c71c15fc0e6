"""A release: one version everywhere, matching tags, and packages that name their dependencies."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from netspace import REQUIREMENTS, __version__

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_script", ROOT / "scripts/release.d/release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with copies of the checkout's files that contain its version.

    The folder also has a changelog with a heading for this version.
    """
    for name in {"_utils/netspace/__init__.py", "debian/changelog", *release.ADDRESSES}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text().replace("example.org", "netspace.test"))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{__version__}] - 2026-12-01\n")
    return tmp_path


def test_version_is_the_same_in_each_place() -> None:
    assert set(release.versions(ROOT).values()) == {__version__}


def test_version_that_differs_is_refused_by_place(tree: Path) -> None:
    path = tree / "client/pyproject.toml"
    path.write_text(path.read_text().replace(f'version = "{__version__}"', 'version = "9.9.9"'))
    with pytest.raises(release.Refused, match=r"version: differs: .*'client/pyproject.toml': '9\.9\.9'"):
        release.versions(tree)


def test_tag_that_fits_is_accepted(tree: Path) -> None:
    assert release.tagged(tree, [f"v{__version__}"]) == []
    assert release.tagged(tree, []) == []


def test_tag_of_another_version_is_refused(tree: Path) -> None:
    assert release.tagged(tree, ["v9.9.9"]) == [
        f"tag v9.9.9: the version is {__version__}; tag this commit v{__version__}"
    ]


def test_tag_without_a_heading_in_the_changelog_is_refused(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    (problem,) = release.tagged(tree, [f"v{__version__}"])
    assert problem.startswith("CHANGELOG.md: has no heading")


def test_tag_with_fragments_of_the_changelog_is_refused(tree: Path) -> None:
    (tree / "changelog.d").mkdir()
    (tree / "changelog.d/README.md").touch()
    assert release.tagged(tree, [f"v{__version__}"]) == []
    (tree / "changelog.d/images.fixed.md").touch()
    (problem,) = release.tagged(tree, [f"v{__version__}"])
    assert problem == f"changelog.d: has images.fixed.md; run towncrier build --version {__version__}"


def test_each_fragment_of_the_changelog_has_a_kind() -> None:
    project, page = ((ROOT / name).read_text() for name in ("pyproject.toml", "changelog.d/README.md"))
    kinds = re.findall(r'^\[\[tool\.towncrier\.type\]\]\ndirectory = "(\w+)"$', project, re.M)
    assert kinds == re.findall(r"^\| `(\w+)` \|", page, re.M)
    form = re.compile(rf"[a-z0-9-]+\.({'|'.join(kinds)})\.md|README\.md|template\.jinja")
    for path in (ROOT / "changelog.d").iterdir():
        assert form.fullmatch(path.name), path.name
        lines = path.read_text().splitlines()
        assert lines and max(map(len, lines)) <= 120 and not lines[0].startswith(("-", "*")), path.name


def test_tag_with_example_addresses_is_refused(tree: Path) -> None:
    (tree / "pyproject.toml").write_text('Homepage = "https://git.example.org/netspace"\n')
    assert release.tagged(tree, [f"v{__version__}"]) == [
        "pyproject.toml: names example.org; set the project's addresses"
    ]


# -- the long description ---------------------------------------------------------------------------
FILES = "https://netspace.test/file/"


def test_link_to_a_file_of_the_repository_is_made_whole() -> None:
    text = "[a](docs/links.md#limits), [b](https://other.test/x), [c](#use)"
    assert release.published(text, "", FILES) == text.replace("docs/", f"{FILES}docs/")
    assert release.published("[d](../docs)", "client", FILES) == f"[d]({FILES}docs)"


@pytest.mark.parametrize("link", ["docs/missing.md", "../elsewhere"])
def test_link_to_no_file_of_the_repository_is_refused(link: str) -> None:
    with pytest.raises(release.Refused, match=r"links to .*, which is not a file here"):
        release.published(f"[a]({link})", "", FILES)


# -- the Debian package ----------------------------------------------------------------------------
def dependencies(package: str) -> dict[str, str]:
    """Return the dependencies of a package in debian/control, with their versions."""
    text = (ROOT / "debian/control").read_text()
    (stanza,) = [part for part in text.split("\n\n") if part.startswith(f"Package: {package}\n")]
    field = re.search(r"^Depends:\n((?: .*\n)+)", stanza, re.MULTILINE)
    assert field is not None
    return {line.split()[0].rstrip(","): line.strip().rstrip(",") for line in field[1].splitlines()}


def test_debian_package_depends_on_what_a_host_needs() -> None:
    host = yaml.safe_load((ROOT / "states/netspace/packages.yaml").read_text())["host"]
    assert set(host) <= dependencies("netspace").keys()


def test_debian_package_is_built_with_what_is_provisioned() -> None:
    text = (ROOT / "debian/control").read_text().split("\n\n")[0]
    wanted = set(re.findall(r"^ ([\w-]+)", text[text.index("Build-Depends") :], re.MULTILINE))
    named = {"debhelper-compat": "debhelper", "dh-sequence-python3": "dh-python"}
    listed = yaml.safe_load((ROOT / "states/netspace/packages.yaml").read_text())["release"]
    assert {named.get(name, name) for name in wanted} <= set(listed)


def test_debian_library_depends_on_the_requirements() -> None:
    named = dependencies("python3-netspace")
    for name, requirement in REQUIREMENTS.items():
        found = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        assert found is not None, name
        assert named[f"python3-{found[1]}"] == f"python3-{found[1]} (>= {found[2]})"
