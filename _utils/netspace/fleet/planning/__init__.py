"""Plans of a fleet: hosts' own plans gathered and folded, applied exactly, compared, and kept."""
