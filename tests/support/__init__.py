"""Helpers of the tests, in a folder for each subject."""
