"""TPM 2.0: the device, its structures, and credentials."""
