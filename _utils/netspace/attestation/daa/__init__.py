"""Direct Anonymous Attestation, experimental: a TPM proves that it is one of those admitted, and not which.

Nothing else imports this package. ``docs/anonymous-attestation.md`` says what it proves, and what it does not hide.
"""
