"""Fixtures of every functional test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def devices_stay_the_hosts() -> Iterator[None]:
    """Check that no runtime gives the host's /dev/null, as a standard stream, to an environment's user."""
    yield
    owner = os.stat("/dev/null").st_uid
    if owner != 0:
        os.chown("/dev/null", 0, 0)
        raise AssertionError(f"/dev/null was given to user {owner}")
