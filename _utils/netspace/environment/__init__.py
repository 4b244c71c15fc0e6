"""Environments: programs in isolated worlds of their own, run by an OCI runtime.

``kind.Environments`` observes, plans and applies; ``operations.Operations`` has an operator's
operations on environments that exist. Below them: ``images`` (content-addressed read-only
roots), ``rootfs`` (an environment's own view of one), ``oci`` and ``seccomp`` (pure: the hardened
configuration), ``runtimes`` (all runtimes) and ``runtime`` (calls of one), ``handout`` (the
files inside ``/run/netspace``), ``ids`` (host user ids) and ``mounts`` (system calls).
"""
