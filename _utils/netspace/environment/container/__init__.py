"""Container of an environment: OCI configuration and runtime, seccomp, AppArmor, cgroups."""
