"""Plans of a fleet: the hosts' own plans are gathered and merged into one, which is kept, compared and applied."""
