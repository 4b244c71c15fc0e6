"""Packet filters: one table for the host, and one in each network namespace."""
