"""Logs that a TPM vouches for: boot log, systemd's records, IMA list. Parsed and replayed."""
