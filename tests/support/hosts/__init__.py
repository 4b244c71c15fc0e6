"""Helpers for tests of whole hosts."""
