"""The Debian package: its content, and that it starts nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkout
from support.hosts.salt_modes import Salt, configure

ROOT = checkout.ROOT


@pytest.fixture(scope="session")
def unpacked(packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return folder


def test_file_root_is_that_of_the_checkout(unpacked: Path) -> None:
    served, wanted = unpacked / "usr/share/netspace/file_root", ROOT / "file_root"

    def contents(root: Path) -> dict[str, bytes]:
        return {
            os.path.relpath(os.path.join(folder, name), root): Path(folder, name).read_bytes()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
            if not folder.endswith("__pycache__")
        }

    assert contents(served) == contents(wanted)
    assert not [path for path in served.rglob("*") if path.is_symlink()]


def test_time_of_a_file_depends_on_its_content(unpacked: Path) -> None:
    """A file's time depends on its content, since Salt's file server reads a file again only after a new time."""
    modules = list((unpacked / "usr/share/netspace/file_root/_utils").rglob("*.py"))
    contents = {path.read_bytes() for path in modules}
    times = {int(path.stat().st_mtime) for path in modules}
    assert len(contents) > 300
    assert 0.9 * len(contents) < len(times) <= len(contents)


def test_library_is_where_debians_python_looks(unpacked: Path) -> None:
    library, source = unpacked / "usr/lib/python3/dist-packages/netspace", ROOT / "_utils/netspace"
    wanted = [path.relative_to(source) for path in source.rglob("*.py")]
    assert len(wanted) > 300
    assert [name for name in wanted if not (library / name).exists()] == []
    assert [name for name in wanted if (library / name).read_bytes() != (source / name).read_bytes()] == []
    assert (library / "sls/netspace/packages.yaml").exists()


def test_nothing_is_started_by_installing(packages: list[Path], unpacked: Path, tmp_path: Path) -> None:
    """The package has no maintainer script, init script or preset that starts something (see test_from_nothing.py)."""
    for package in packages:
        control = tmp_path / package.stem
        subprocess.run(["dpkg-deb", "--control", package, control], check=True)
        for script in ("preinst", "postinst"):
            text = (control / script).read_text() if (control / script).exists() else ""
            assert not re.search(r"deb-systemd-invoke|systemctl|update-rc\.d|invoke-rc\.d", text), script
    units = [path.name for path in (unpacked / "usr/lib/systemd/system").iterdir()]
    assert units == ["netspace-apply.service"]
    assert not (unpacked / "etc").exists()


def test_lintian_finds_nothing(packages: list[Path]) -> None:
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning,info", "--allow-root", "--show-overrides", *packages],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.root
def test_any_salt_finds_it_by_file_roots(unpacked: Path, tmp_path: Path) -> None:
    """A Salt with its own Python syncs netspace from the package's folder, as docs/installation.md says."""
    served = unpacked / "usr/share/netspace/file_root"
    salt = Salt(Path(sys.executable), configure(tmp_path / "salt", served), served, Path())
    synced, _ = salt.call("saltutil.sync_all")
    assert "modules.netspace_link" in synced["modules"] and "utils.netspace.spec.parse" in synced["utils"]
