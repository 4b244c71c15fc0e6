"""Kinds of requests (verbs) that the host answers, one module each. A new file adds a verb."""
