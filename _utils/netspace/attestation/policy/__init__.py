"""Policies: an operator's demands on a host, parsed strictly."""
