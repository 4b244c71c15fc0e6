"""Ledger of runs: the log of what a host was told to run in this boot, and the TPM's NV index that proves the log."""
