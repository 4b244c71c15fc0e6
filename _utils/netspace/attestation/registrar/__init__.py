"""Registrar and Privacy CA: enrolment of TPMs, and certificates for their attestation keys."""
