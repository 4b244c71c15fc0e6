"""Attempts to break out of an environment, made from inside. Each module has one group, such as files or devices."""
