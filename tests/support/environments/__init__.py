"""Helpers for tests of environments."""
