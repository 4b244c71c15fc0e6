"""The tests' own kernel for Xen (``kernel/xen.c``): built from source, for a domain of the type PVH or PV."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel")
FLAGS = (
    *(
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Werror",
        "-ffreestanding",
        "-fno-stack-protector",
        "-fno-pic",
        "-mgeneral-regs-only",
    ),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-nostdlib", "-static", "-no-pie"),
    *("-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-Wl,--no-warn-rwx-segments"),
)
TYPES = {"pvh": ("-m32", "-DPVH"), "pv": ("-m64", "-mno-red-zone")}


def build(target: Path, headers: Path, type_: str) -> Path:
    """Build the kernel for a type of domain, without any library; return *target*.

    :param headers: folder with Xen's public headers.
    """
    parts = (f"-I{headers}", f"-Wl,-T,{SOURCE / 'xen.ld'}", SOURCE / "xen_start.S", SOURCE / "xen.c")
    command = ["gcc", *FLAGS, *TYPES[type_], *parts, "-o", target]
    subprocess.run(command, check=True)  # type: ignore[arg-type]
    return target
