"""Verifier (RFC 9334): checks that evidence is genuine, and appraises it by a policy."""
