"""Helpers for tests of attestation."""
