"""Where pytest-salt-factories keeps the daemons it starts, and who makes the TPMs."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from software_tpm import Factory, manufacture


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "root_dir": tmp_path_factory.mktemp("factories"),
        "log_server_host": "127.0.0.1",
        "inject_sitecustomize": False,
        "start_timeout": 120,
    }


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Factory]:
    """A maker of TPMs for each of two hosts."""
    missing = [name for name in ("swtpm", "swtpm_setup", "swtpm_localca", "certtool") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install swtpm swtpm-tools gnutls-bin")
    return {name: manufacture(tmp_path_factory.mktemp(f"maker-{name}")) for name in ("a", "b")}
