"""Fixtures of every functional test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

LEFT_OUT = {one for one in os.environ.get("NETSPACE_LEFT_OUT", "").split(",") if one}
"""Runtimes that don't work on this host, whatever runs in them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of runtimes that are left out: those with the runtime as a parameter or a mark."""
    for item in items:
        parameters = item.nodeid.rpartition("[")[2].rstrip("]").split("-") if "[" in item.nodeid else []
        marks = [argument for mark in item.iter_markers("runtime") for argument in mark.args]
        if out := {*parameters, *marks}.intersection(LEFT_OUT):
            item.add_marker(pytest.mark.skip(f"{', '.join(out)} is left out (NETSPACE_LEFT_OUT)"))


@pytest.fixture(autouse=True)
def devices_stay_the_hosts() -> Iterator[None]:
    """Check after each test that no runtime made an environment's user the owner of the host's /dev/null."""
    yield
    owner = os.stat("/dev/null").st_uid
    if owner != 0:
        os.chown("/dev/null", 0, 0)
        raise AssertionError(f"/dev/null was given to user {owner}")
