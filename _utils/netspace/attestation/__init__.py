"""Remote attestation: a host proves its state with a TPM or TEE, and a verifier judges the evidence.

The terms are those of RFC 9334 (RATS): the *attester* makes *evidence*, the *verifier* appraises it, and enforcement
reads the attestation *result*.

Shared:

- ``evidence``: the messages. ``ear``: signed results. ``identity``: signatures with a minion's Salt key.
- ``tpm``: the TPM device, parsers of its structures without libtss2, and credentials. ``tee``: reports of TEEs.
- ``refusals``: the reasons for a refusal. ``hsm``, ``signing_keys``: signing keys in a hardware module or in files.

On the host:

- ``minion``: makes evidence, answers the master and stores its results (``master_result``). A host without a master
  appraises itself (``self_appraisal``). ``host_facts``: claims from files; never evidence.
- ``result``: the recorded result. ``reconciler``: observe, plan, apply.

The verifier, which reads no file:

- ``verifier``: checks that evidence is genuine, and appraises it. ``offline``, ``tee_offline``: the same for an
  operator's files, with a report of each check.
- ``logs``: parsers of boot logs and measurement lists. ``policy``, ``policy_reading``: rules for boots and programs.

On the master:

- ``endorsement``: makers' certificates of TPMs, which a host that appraises itself checks, too.
- ``registrar``: the TPM of each minion, the Privacy CA and the audit log.
- ``fleet``: the verifier of all minions, and the policy of each group. ``learning``: policies from good boots.

Importing this package imports nothing heavy: no libtss2, no cryptography.
"""
