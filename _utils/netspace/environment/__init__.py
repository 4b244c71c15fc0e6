"""Environments: isolated programs, each run by an OCI runtime.

``reconciler.Environments`` observes, plans and applies; ``operations.Operations`` has an operator's
operations on existing environments. Below them: ``images`` (read-only roots, named by their
content), ``storage`` (mounts, an environment's overlay on an image, volumes, the files in
``/run/netspace``), ``container`` (the hardened configuration, which is pure, and calls of a runtime),
``runtimes`` (all runtimes), ``health``, ``update``, ``audit`` (of isolation), ``refusals`` (of calls and files) and
``user_ids`` (host user ids).
"""
