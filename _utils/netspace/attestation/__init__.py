"""Remote attestation: a host proves its state with a TPM or TEE, and a verifier judges the evidence.

The terms are those of RFC 9334 (RATS): the *attester* makes *evidence*, the *verifier* appraises it, and enforcement
reads the attestation *result*.

- ``facts``: properties of the host, from files; never evidence.
- ``tpm``: the TPM device. ``structures``: parsers of TPM structures, without libtss2.
- ``evidence``: the messages. ``attester``: makes evidence. ``software``: the key of a host without a TPM.

These modules do no I/O:

- ``credential``, ``certificates``, ``verifier``: checks that evidence is genuine.
- ``eventlog``, ``measurelog``, ``ima``: parsers of logs and lists. ``events``: the meaning of a boot log's events.
- ``policy``: rules for boots and programs. ``judge``: appraisal of genuine evidence (``ima_rules``: of its measurement
  list). ``refusals``: the reasons for a refusal.

These run on the master:

- ``registrar``: the TPM of each minion; with ``privacy_ca`` and ``audit_log``.
- ``fleet``: the verifier of all minions. ``groups``: the policy of each group of minions. ``ear``: signed results,
  which a host checks in ``verdict``.

The rest:

- ``offline``, ``pcrfile``: quotes and logs in files, for people.
- ``appraisal``: a host without a master appraises itself. ``result``: the recorded result.
- ``kind``: observe, plan, apply.

Importing this package imports nothing heavy: no libtss2, no cryptography.
"""
