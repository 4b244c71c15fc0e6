"""Health of environments: probes, judgements, and the restart of unhealthy environments.

``probes`` runs the declared checks, ``state`` judges their results (pure), ``record`` reads and writes the files, and
``watcher`` is the process that watches all environments of a host. ``alarms`` derives events from observations (pure).
"""
