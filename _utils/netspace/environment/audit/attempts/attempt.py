"""Table of attempts, and the functions that attempts use: raw system calls, and targets from the input."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
# (x86_64, aarch64) numbers; those from 424 on are the same on both.
NUMBERS = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "userfaultfd": (323, 282), "bpf": (321, 280),
    "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "io_uring_setup": (425, 425), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "open_tree": (428, 428),
    "fsopen": (430, 430), "mount_setattr": (442, 442), "clone3": (435, 435), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "lookup_dcookie": (212, 18), "kcmp": (312, 272), "iopl": (172, -1), "mknod": (133, -1),
    "shmget": (29, 194), "setuid": (105, 146), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "process_madvise": (440, 440), "cachestat": (451, 451), "move_pages": (279, 239), "ioperm": (173, -1),
    "sched_setscheduler": (144, 119), "ioprio_set": (251, 30), "mq_open": (240, 180), "fanotify_init": (300, 262),
    "delete_module": (176, 106), "io_setup": (206, 0), "mlock": (149, 228),
}  # fmt: skip

# Seconds. Network targets are on this machine or refused, so an answer comes at once or never.
PATIENCE = 0.3

Attempt = Callable[[dict[str, Any]], str]
ATTEMPTS: list[tuple[str, str, Attempt]] = []


class Skip(Exception):
    """Error: the attempt has no target here, so its outcome is ``skipped``."""


class Refused(Exception):
    """Error: the attempt failed, as it should; its outcome is ``refused``."""


def attempt(group: str, name: str) -> Callable[[Attempt], Attempt]:
    """Register an attempt: a function that returns a text if it succeeds, or raises Refused, OSError or Skip."""

    def register(function: Attempt) -> Attempt:
        ATTEMPTS.append((group, name, function))
        return function

    return register


def syscall(name: str, *arguments: Any) -> int:
    """Make a system call by its number, without libc's wrapper; raise OSError if the call fails."""
    numbers = NUMBERS[name]
    number = numbers[0] if MACHINE == "x86_64" else numbers[1]
    if number < 0 or MACHINE not in ("x86_64", "aarch64"):
        raise Skip(f"{MACHINE} has no system call {name}")
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def want(target: dict[str, Any], *keys: str) -> Any:
    """Return the value at the path *keys* of the input.

    :raises Skip: when the value is absent; with the input's reason, if it gives one.
    """
    value: Any = target
    for key in keys:
        if isinstance(value, dict) and "skip" in value:
            break
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict) and "skip" in value:
        raise Skip(str(value["skip"]))
    if value in (None, [], ""):
        raise Skip(f"the input has no target {':'.join(keys)}")
    return value
