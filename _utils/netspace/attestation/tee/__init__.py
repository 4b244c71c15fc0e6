"""TEE evidence: reports of confidential guests, from the kernel's file to a verdict.

- ``binary``: strict readers of fixed layouts and of DER. ``x509``: certificates and paths to an operator's roots.
- ``report``: the form of a verified report of any kind. ``kinds``: the parser of each kind.
- ``snp``: AMD SEV-SNP. ``tdx``, ``tdx_tcb``: Intel TDX, and Intel's status of its TCB.
- ``hcl``: the keys of a vTPM that an SNP report or a TDX quote vouches for (Azure).
- ``ccel``: the guest's boot log, and the registers that it leads to.
- ``roots``: the operator's folder. ``rules``: the policy's section. ``appraisal``: what a report is worth.
- ``configfs``: the guest's side; takes a report from the kernel.
- ``offline``: reports in files, for people.

``configfs`` and ``roots`` work on files. All others are pure: no file, no network, no clock.
A further TEE is a module beside ``snp`` and a line in ``kinds``.

Importing this package imports nothing heavy.
"""
