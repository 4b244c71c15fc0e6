"""Verbs of the host: what it can be asked for, one module each. A new file adds a verb."""
