"""Certificates and accounts by which environments and hosts identify themselves to a broker."""
