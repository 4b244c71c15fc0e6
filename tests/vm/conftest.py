"""Virtual machines of each flavour: every test gets a fresh clone of a machine that was booted once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmlab.lab import Lab, Salt
from vmlab.machine import Machine


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/var/tmp"))  # a socket's path has 107 bytes; /tmp may be memory
    yield Lab(folder, Path(os.environ.get("NETSPACE_TEST_RUN", folder)))
    shutil.rmtree(folder)


@pytest.fixture
def clone(lab: Lab) -> Iterator[Callable[[str], Machine]]:
    """A function that returns a booted machine of a flavour. The machine is removed after the test."""
    with ExitStack() as stack:

        def make(flavour: str) -> Machine:
            machine = stack.enter_context(lab.clone(flavour))
            stack.callback(shutil.rmtree, machine.folder)
            stack.callback(machine.cut)
            return machine

        yield make


@pytest.fixture
def plain(clone: Callable[[str], Machine]) -> Machine:
    """A machine without a TPM."""
    return clone("plain")


@pytest.fixture
def salt(plain: Machine) -> Salt:
    return Salt(plain)
