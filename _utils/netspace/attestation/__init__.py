"""Attestation: what this host can prove about itself, and who judges it.

The words are those of RFC 9334 (RATS): the *attester* makes *evidence*, the
*verifier* checks it, the *result* is what enforcement reads.

- ``facts``: what the host has, from files; never evidence.
- ``tpm``: the TPM as a device. ``structures``: its structures, without libtss2.
- ``evidence``: the messages. ``attester``: makes them. ``software``: the key of a
  host without a TPM.
- ``credential``, ``certificates``, ``verifier``: is evidence genuine? No I/O, nor in these:
- ``eventlog``, ``measurelog``, ``ima``: what was measured. ``events``: what a boot log says.
- ``policy``: what a good boot is. ``judge``: what genuine evidence is worth (``ima_rules``: its measurement list).
  ``refusals``: why not.
- ``registrar``: which TPM is which minion's, on the master; with ``privacy_ca`` and ``audit_log``.
- ``fleet``: the verifier on the master; ``groups``: whose policy is which. ``ear``: its signed results.
  ``verdict``: a host takes them.
- ``offline``, ``pcrfile``: quotes and logs in files, for people.
- ``appraisal``: a host without a master judges itself. ``result``: what is kept of it.
- ``kind``: observe, plan, apply.

Importing this package imports nothing heavy: no libtss2, no cryptography.
"""
