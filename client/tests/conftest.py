"""Configuration of the client's tests: they are repeated like all others."""

from __future__ import annotations

from support.repetitions import pytest_generate_tests as pytest_generate_tests
