"""Attester (RFC 9334): the part of attestation that runs on the attested host."""
