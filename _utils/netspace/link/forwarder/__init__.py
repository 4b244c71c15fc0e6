"""Forwarder: an haproxy that carries each environment's connections to the broker."""
