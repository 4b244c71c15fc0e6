"""The tests' own unikernel (``tests/support/environments/kernel``): built from source, for QEMU's PC."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel")
FLAGS = (
    *("-m32", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pie", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-mno-sse", "-mno-mmx"),
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments"),
)


def build(target: Path, *flags: str) -> Path:
    """Build the kernel, without any library; return *target*.

    With ``-DPVH`` the kernel boots by PVH, else by multiboot.
    """
    command = [
        "gcc",
        *FLAGS,
        *flags,
        f"-Wl,-T,{SOURCE / 'kernel.ld'}",
        "-o",
        target,
        SOURCE / "start.S",
        SOURCE / "kernel.c",
    ]
    subprocess.run(command, check=True)  # type: ignore[arg-type]
    return target
