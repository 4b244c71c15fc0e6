"""Comparison of desired environments with observed ones: refusals, notes, differences, and the steps to take. Pure."""
