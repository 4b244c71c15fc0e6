"""Seals: encryption of messages between hosts, and the endorsement of the hosts' keys."""
