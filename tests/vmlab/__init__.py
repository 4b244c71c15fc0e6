"""Virtual machines for tests: a real kernel, systemd as PID 1, cgroup v2, UEFI, TPM; no network.

Everything runs under QEMU without KVM. ``image`` builds what is booted, once; ``flavours``
says which machines there are; ``machine`` drives one; ``agent`` is what answers inside;
``lab`` keeps a snapshot of each flavour and hands out clones. ``scripts/vm`` is the
developer's command.
"""
