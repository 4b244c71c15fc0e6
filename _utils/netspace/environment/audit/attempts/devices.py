"""Attempts on devices of the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any

from netspace.environment.audit.attempts.attempt import Refused, attempt, syscall


@attempt("devices", "make a device node")
def make_device(target: dict[str, Any]) -> str:
    os.mknod("/tmp/probe-device", 0o600 | 0o020000, os.makedev(1, 1))
    os.unlink("/tmp/probe-device")
    return "made a character device"


@attempt("devices", "open a device beyond the minimal set")
def open_device(target: dict[str, Any]) -> str:
    allowed = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm", "core"}
    found = []
    for name in os.listdir("/dev"):
        if name not in allowed:
            with contextlib.suppress(OSError):
                os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
                found.append(name)
    if not found:
        raise Refused("/dev has nothing else that can be opened")
    return f"opened {', '.join(found)}"


@attempt("devices", "make a block device and read the host's disk")
def make_disk(target: dict[str, Any]) -> str:
    for folder in ("/tmp", "/dev", "/dev/shm"):
        for major, minor in ((8, 0), (259, 0), (254, 0), (7, 0)):
            with contextlib.suppress(OSError):
                os.mknod(f"{folder}/probe-disk", 0o600 | 0o060000, os.makedev(major, minor))
                os.unlink(f"{folder}/probe-disk")
                return f"made a block device in {folder}"
    raise Refused("no block device can be made")


@attempt("devices", "use the machine's ports")
def ports(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        return f"iopl: {syscall('iopl', 3)}"
    return f"ioperm: {syscall('ioperm', 0x80, 1, 1)}"


@attempt("devices", "reach a virtual machine monitor, a TPM, a GPU or a sound card")
def special_devices(target: dict[str, Any]) -> str:
    for name in ("kvm", "vhost-vsock", "tpm0", "tpmrm0", "dri/card0", "snd/timer", "fuse", "net/tun", "loop-control"):
        with contextlib.suppress(OSError):
            os.close(os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK))
            return f"opened /dev/{name}"
    raise Refused("no such device can be opened")


@attempt("devices", "type into a terminal of the host")
def terminal(target: dict[str, Any]) -> str:
    for path in ("/dev/tty", "/dev/console", "/dev/ptmx", "/dev/tty0"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            fcntl.ioctl(fd, 0x5412, b"\0")  # TIOCSTI
            return f"typed into {path}"
    raise Refused("none of these terminals could be opened and typed into")
