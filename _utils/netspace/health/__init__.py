"""Whether environments do their work: probed as declared, told in files, and acted upon.

``machine`` judges (pure), ``verdict`` is what is written, ``probes`` ask, and ``watch`` is the
one process that does so for all environments of a host.
"""
