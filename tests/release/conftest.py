"""The files of a release. scripts/release makes them before the tests; ``scripts/test release`` runs both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from support.hosts import fresh_host
from support.hosts.systemd_host import SystemdHost

ROOT = Path(__file__).resolve().parents[2]
Boot = Callable[[], AbstractContextManager[SystemdHost]]


@pytest.fixture(scope="session")
def dist() -> Path:
    """Return the folder of the files that ``scripts/release`` made."""
    folder = Path(os.environ.get("NETSPACE_DIST", ROOT / ".cache/dist"))
    assert (folder / "SHA256SUMS").exists(), f"no release in {folder}: run scripts/test release"
    return folder


@pytest.fixture(scope="session")
def packages(dist: Path) -> list[Path]:
    """Return the Debian packages of the release."""
    found = sorted(dist.glob("*.deb"))
    assert found, "no Debian package was built: run scripts/test release"
    return found


@pytest.fixture(scope="session")
def former() -> list[Path]:
    """Return the Debian packages of the previous version."""
    found = sorted((ROOT / ".cache/previous").glob("*.deb"))
    assert found, "no Debian package of the version before was built: run scripts/test release"
    return found


@pytest.fixture(scope="session")
def boot(packages: list[Path], former: list[Path]) -> Boot:
    """Return a function that boots a fresh Debian 13 with systemd; its disk is deleted when it is switched off."""
    root = fresh_host.root(packages, former)

    @contextmanager
    def booted() -> Iterator[SystemdHost]:
        disk = Path("/var/tmp") / f"netspace-fresh-{os.getpid()}"
        disk.mkdir(mode=0o755)
        try:
            with SystemdHost(disk, root) as machine:
                yield machine
        finally:
            shutil.rmtree(disk)

    return booted
