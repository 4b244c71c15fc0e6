"""The declared model: what an operator may write, parsed, checked, resolved.

Pure: values in, values out. ``types`` are the values, ``parse`` makes them out of
pillar or state arguments, ``check`` refuses what clashes. Nothing here looks at
the host.
"""
