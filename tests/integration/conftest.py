"""Where pytest-salt-factories keeps the daemons it starts."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "root_dir": tmp_path_factory.mktemp("factories"),
        "log_server_host": "127.0.0.1",
        "inject_sitecustomize": False,
        "start_timeout": 120,
    }
