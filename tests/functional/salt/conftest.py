"""Salt with netspace, installed in each of the ways that the documentation offers."""

from __future__ import annotations

import pytest
from support.hosts.salt_modes import Salt, build
from support.sampling import todays


@pytest.fixture(scope="module", params=["sync", *todays(["pip", "editable"], 2)])
def salt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Salt:
    return build(request.param, tmp_path_factory.mktemp(request.param))
