"""Environments: isolated programs, each run by an OCI runtime.

``kind.Environments`` observes, plans and applies; ``operations.Operations`` has an operator's
operations on existing environments. Below them: ``images`` (read-only roots, named by their
content), ``rootfs`` (an environment's own overlay on an image), ``oci`` and ``seccomp`` (pure: the
hardened configuration), ``runtimes`` (all runtimes) and ``runtime`` (calls of a runtime),
``handout`` (the files in ``/run/netspace``), ``ids`` (host user ids) and ``mounts`` (system calls).
"""
