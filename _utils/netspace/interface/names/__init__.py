"""DNS names in rules of ``allow``: the host looks them up, and puts their addresses into sets of the packet filters."""
