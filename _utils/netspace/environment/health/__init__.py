"""Health of environments: probes, judgements, and the restart of unhealthy environments.

``probes`` runs the declared checks, ``state`` judges their results (pure), ``record`` has the files, and ``watcher`` is
the one process that does all that for the environments of a host. ``alarms`` derives events from observations (pure).
"""
