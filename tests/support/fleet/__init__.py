"""Helpers of the tests of a fleet's declaration."""
