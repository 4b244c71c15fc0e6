"""Direct Anonymous Attestation, experimental: a TPM proves that it is one of the admitted TPMs, but not which one.

Nothing else imports this package. ``docs/anonymous-attestation.md`` says what it proves, and what it does not hide.
"""
