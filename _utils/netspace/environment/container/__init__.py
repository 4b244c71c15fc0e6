"""Container of an environment, as OCI and the kernel see it."""
