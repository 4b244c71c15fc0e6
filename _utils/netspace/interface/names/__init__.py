"""Names in rules of ``allow``: looked up by the host, bounded, and put into sets of the packet filters."""
