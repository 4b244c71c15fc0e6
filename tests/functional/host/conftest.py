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


@pytest.fixture(scope="session")
def torn_down() -> set[str]:
    """A set that is not empty if netspace is torn down: the last test did that, and nothing was applied afterwards."""
    return set()


@pytest.fixture(autouse=True)
def _used(request: pytest.FixtureRequest, torn_down: set[str]) -> None:
    if "clean" not in request.fixturenames:
        torn_down.clear()


@pytest.fixture
def clean(salt: Salt, torn_down: set[str]) -> Iterator[None]:
    """Tear netspace down after the test. Tear it down before the test, too, if it isn't torn down yet."""
    if not torn_down:
        salt("netspace.teardown")
    torn_down.clear()
    yield
    salt("netspace.teardown")
    torn_down.add("by a test")
