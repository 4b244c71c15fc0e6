"""Health of environments: probed as declared, written to files, and acted upon.

``machine`` judges (pure), ``verdict`` has the files, ``probes`` ask, and ``watch`` is the one process
that does so for all environments of a host.
"""
