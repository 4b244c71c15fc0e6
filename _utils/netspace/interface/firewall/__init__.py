"""Packet filters: the host's table, and a table in each network namespace."""
