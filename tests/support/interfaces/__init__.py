"""Helpers for tests of interfaces."""
