"""The host as a peer of its environments: one process answers their requests. Each kind of request has a module."""
