"""A fleet in one declaration: its types, parser, placement and checks, and each host's slice of it.

``compile`` is pure: it makes of a declaration, and of what hosts have published to the master, the pillar of each host.
``in_force`` keeps the last good result on the master's disk. ``joining`` brings a host into the fleet.
"""
