"""Tests of the client are repeated as all others are."""

from __future__ import annotations

from support.repetitions import pytest_generate_tests as pytest_generate_tests
