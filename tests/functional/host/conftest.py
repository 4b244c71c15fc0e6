"""Fixtures for tests of a whole host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts.whole_host import IMAGE, Salt


@pytest.fixture(scope="session")
def salt(tmp_path_factory: pytest.TempPathFactory) -> Salt:
    return Salt(tmp_path_factory.mktemp("pillar"))


@pytest.fixture(scope="session")
def image() -> Path:
    assert IMAGE.exists(), f"{IMAGE} is missing: run scripts/demo-image"
    return IMAGE


@pytest.fixture
def clean(salt: Salt) -> Iterator[None]:
    """Tear netspace down before and after the test."""
    salt("netspace.teardown")
    yield
    salt("netspace.teardown")
