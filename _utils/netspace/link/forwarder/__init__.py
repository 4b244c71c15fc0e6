"""Forwarder: haproxy, which leads each environment's connections to the broker."""
