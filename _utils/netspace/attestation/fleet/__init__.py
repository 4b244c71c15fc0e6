"""Attestation of a fleet by Salt's master: rounds, records and transfer of answers."""
