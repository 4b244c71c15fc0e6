"""Seals: the keys with which messages between hosts are encrypted, and the endorsement of these keys."""
