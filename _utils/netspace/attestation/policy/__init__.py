"""Policies: what an operator demands of a host, parsed strictly."""
