"""Verifier (RFC 9334): genuine evidence, judged by a policy."""
