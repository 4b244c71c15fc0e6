"""The declaration: its types, parser and checks. Pure; never reads the host.

``types`` defines the values, ``parse`` builds them from pillar or state arguments, and
``check`` reports invalid and conflicting values.
"""
