"""Attempts to break out of an environment, made from inside it, in groups by what they aim at."""
