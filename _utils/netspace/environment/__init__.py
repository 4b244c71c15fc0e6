"""Environments: isolated programs, each run by an OCI runtime.

- ``reconciler.Environments``: observes environments, and plans and applies changes.
- ``operations.Operations``: an operator's operations on existing environments.
- ``images``: read-only root file systems, named by the digest of their content.
- ``storage``: mounts, an environment's overlay on its image, volumes, the files in ``/run/netspace``.
- ``container``: the hardened OCI configuration, and calls of a runtime. ``runtimes``: the supported runtimes.
- ``health``: health checks. ``update``: rolling updates.
- ``audit``: tests of the isolation. ``refusals``: refused system calls and file accesses.
- ``user_ids``: allocation of host user ids.
"""
