"""A fleet in one declaration: its types, parser, placement and checks, and each host's slice of it (the host's pillar).

``compile`` is pure: it makes the slice of each host from a declaration and the facts that hosts have published.
``in_force`` keeps the last good result on the master's disk. ``joining`` brings a host into the fleet.
"""
