"""Endorsements (RFC 9334): makers' certificates of TPMs, and the paths to their roots."""
