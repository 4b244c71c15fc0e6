"""TEE evidence: verification and appraisal of reports from confidential guests.

- ``binary``: strict readers of fixed layouts and of DER. ``x509``: certificates and paths to the operator's roots.
- ``report``: a verified report of any kind. ``kinds``: the verifier of each kind.
- ``snp``: AMD SEV-SNP. ``tdx``, ``tdx_tcb``: Intel TDX, and Intel's status of its TCB.
- ``hcl``: the keys of a vTPM for which an SNP report or a TDX quote vouches (Azure).
- ``ccel``: the guest's boot log, and the register values that result from it.
- ``roots``: the operator's folder of certificates. ``rules``: the policy's section ``tee``. ``appraisal``: appraisal of
  a report.
- ``configfs``: the guest's side, which gets a report from the kernel.
- ``verifier.tee_offline`` (outside of this package): reports in files, for people.

``configfs`` and ``roots`` use files. All other modules are pure: no file, no network, no clock. To add a kind of TEE,
add a module like ``snp`` and a line in ``kinds``.

Importing this package imports nothing heavy.
"""
