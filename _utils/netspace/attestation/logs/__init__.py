"""Parsers and replay of the logs that a TPM's quote covers: boot log, systemd's log, IMA list."""
