"""Helpers for tests of links."""
