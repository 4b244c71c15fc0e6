"""Configuration of the client's tests: ``NETSPACE_REPETITIONS`` repeats them, as for netspace's own tests."""

from __future__ import annotations

from support.repetitions import pytest_generate_tests as pytest_generate_tests
