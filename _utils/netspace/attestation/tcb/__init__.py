"""Trusted computing base of a host below its kernel, as the kernel's files show it and as the boot log proves it."""
