"""The files of a release, which scripts/release has made before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def dist() -> Path:
    """Return the folder of the files that ``scripts/release`` made."""
    folder = Path(os.environ.get("NETSPACE_DIST", ROOT / ".cache/dist"))
    if not (folder / "SHA256SUMS").exists():
        pytest.skip(f"no release in {folder}: run scripts/release --deb")
    return folder


@pytest.fixture(scope="session")
def packages(dist: Path) -> list[Path]:
    """Return the Debian packages of the release."""
    found = sorted(dist.glob("*.deb"))
    if not found:
        pytest.skip("no Debian package was built: run scripts/release --deb")
    return found
