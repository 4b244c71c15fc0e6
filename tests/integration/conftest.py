"""Fixtures: folders of the daemons that pytest-salt-factories starts, and TPM makers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.attestation.software_tpm import Factory, manufacture, missing
from support.hosts import salt_forks


@pytest.fixture(scope="session")
def salt_programs() -> Iterator[Path]:
    """Folder of Salt's commands, whose imports are done once."""
    with tempfile.TemporaryDirectory(prefix="salts-") as folder, salt_forks.served(Path(folder)) as programs:
        yield programs


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory, salt_programs: Path) -> dict[str, Any]:
    return {
        "root_dir": tmp_path_factory.mktemp("factories"),
        "scripts_dir": salt_programs,
        "log_server_host": "127.0.0.1",
        "inject_sitecustomize": False,
        "start_timeout": 120,
    }


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Factory]:
    """Return a TPM maker for each of two hosts."""
    if reason := missing():
        pytest.skip(reason)
    return {name: manufacture(tmp_path_factory.mktemp(f"maker-{name}")) for name in ("a", "b")}
