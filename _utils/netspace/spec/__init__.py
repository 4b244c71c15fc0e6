"""The declaration of a host: its types, parser and checks. Pure; never reads the host.

``types`` defines the values, ``parse`` builds them from pillar or state arguments, and ``checks`` reports invalid and
conflicting values.
"""
