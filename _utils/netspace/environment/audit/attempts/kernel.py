"""Attempts on interfaces of the kernel: system calls, settings, files and cgroups."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

from netspace.environment.audit.attempts.attempt import Attempt, Refused, attempt, syscall


def _kernel(name: str, *arguments: Any) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        return f"returned {syscall(name, *arguments)}"

    return run


for _call, _arguments in {
    "keyctl": (0, -3, 1),
    "add_key": (b"user", b"probe", b"x", 1, -3),
    "request_key": (b"user", b"probe", None, 0),
    "bpf": (0, None, 0),
    "perf_event_open": (None, 0, -1, -1, 0),
    "io_uring_setup": (1, ctypes.create_string_buffer(120)),
    "init_module": (None, 0, b""),
    "kexec_load": (0, 0, None, 0),
    "swapon": (b"/tmp/x", 0),
    "syslog": (3, ctypes.create_string_buffer(16), 16),
    "kcmp": (1, 1, 0, 0, 0),
    "pidfd_getfd": (0, 0, 0),
}.items():
    attempt("kernel", _call)(_kernel(_call, *_arguments))


@attempt("kernel", "write kernel settings")
def sysctl(target: dict[str, Any]) -> str:
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger",
                 "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj"):  # fmt: skip
        with contextlib.suppress(OSError), open(path, "w") as stream:
            if path.endswith("oom_score_adj"):
                stream.write("-1000")
                stream.flush()
                return "shielded itself from the OOM killer"
            return f"opened {path}"
    raise Refused("none of these settings can be opened for writing")


@attempt("kernel", "read what tells of the kernel and of other programs")
def kernel_files(target: dict[str, Any]) -> str:
    masked = "kcore keys timer_list kallsyms config.gz cmdline interrupts modules sched_debug latency_stats pressure"
    for path in (
        *(f"/proc/{name}" for name in masked.split()),
        "/sys/kernel/debug",
        "/sys/class/net",
        "/sys/fs/cgroup",
    ):
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                if os.listdir(path):
                    return f"{path} can be listed"
            else:
                with open(path, "rb") as stream:
                    if stream.read(1):
                        return f"{path} can be read"
    raise Refused("all of these files are masked or absent")


@attempt("kernel", "reconfigure its own cgroup")
def cgroup(target: dict[str, Any]) -> str:
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            if name in ("cgroup.procs", "memory.max", "pids.max", "release_agent"):
                with contextlib.suppress(OSError):
                    os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                    return f"opened {folder}/{name}"
    raise Refused("no cgroup file can be opened for writing")


@attempt("kernel", "tell this host from another (boot id, counters of open files)")
def host_identity(target: dict[str, Any]) -> str:
    for name in ("kernel/random/boot_id", "fs/file-nr", "fs/inode-nr", "fs/dentry-state"):
        with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "rb") as stream:
            if stream.read(1):
                return f"/proc/sys/{name} can be read"
    raise Refused("all of these files are masked")
