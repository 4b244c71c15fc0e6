"""Salt with netspace, installed in each of the ways that the documentation offers."""

from __future__ import annotations

import pytest
from support.hosts.salt_modes import Salt, build


@pytest.fixture(scope="module", params=["sync", "pip", "editable"])
def salt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Salt:
    return build(request.param, tmp_path_factory.mktemp(request.param))
