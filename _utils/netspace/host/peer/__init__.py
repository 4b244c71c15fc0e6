"""The host as a peer: one process that answers requests of environments, each kind of request a file of its own."""
