"""Audit of isolation: programs that try to break out of a twin of an environment."""
