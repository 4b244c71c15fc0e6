"""Health of environments: probes, judgements, and the restart of unhealthy environments.

``probes`` runs the declared checks, ``machine`` judges their results (pure), ``verdict`` has the files, and
``watch`` is the one process that does all that for the environments of a host.
"""
