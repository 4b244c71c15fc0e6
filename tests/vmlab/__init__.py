"""Virtual machines for tests: a real kernel, systemd as PID 1, cgroup v2, UEFI, TPM; no network.

Everything runs under QEMU without KVM. ``image`` builds the boot files once; ``flavours`` lists the kinds of machines;
``machine`` drives a machine; ``agent`` is the program that answers inside; ``lab`` keeps a snapshot of each flavour and
returns clones. ``scripts/vm`` is the developer's command.
"""
