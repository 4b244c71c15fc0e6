"""Attempts to use more of a resource than a limit allows."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import threading
from typing import Any

from netspace.environment.audit.attempts.attempt import Attempt, Refused, Skip, attempt, syscall, want

MOST = 2 * 1024**3  # the most bytes that an attempt may ask for


def limit(target: dict[str, Any], name: str, most: int = MOST) -> int:
    """Return the value of a limit that an attempt is to exceed.

    :raises Skip: when the limit is unknown, or so high that exceeding it would burden the host.
    """
    value = int(want(target, "limits", name))
    if value > most:
        raise Skip(f"the limit of {value} is too high to try")
    return value


@attempt("resources", "have more processes and threads than its limit")
def too_many(target: dict[str, Any]) -> str:
    allowed = limit(target, "pids", 4096)
    done = threading.Event()
    threading.stack_size(64 * 1024)
    started = 0
    try:
        for _ in range(allowed + 16):
            threading.Thread(target=done.wait, daemon=True).start()
            started += 1
    except RuntimeError:
        raise Refused(f"{started} threads, then no more") from None
    finally:
        done.set()
    return f"{started} threads, {allowed} allowed"


@attempt("resources", "use more memory than its limit")
def too_much(target: dict[str, Any]) -> str:
    size = limit(target, "memory") + 32 * 1024**2
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, 4096):
        memory[offset] = 1
    return f"{size} bytes of it"


@attempt("resources", "open more files than its limit")
def too_many_files(target: dict[str, Any]) -> str:
    allowed = limit(target, "files", 100_000)
    held = []
    try:
        for _ in range(allowed + 16):
            held.append(os.open("/", os.O_PATH))
    except OSError as err:
        raise Refused(f"{len(held)} files, then {errno.errorcode[err.errno or 0]}") from None
    finally:
        for fd in held:
            os.close(fd)
    return f"{len(held)} files, {allowed} allowed"


def _fill(folder: str, size: int) -> str:
    # A file without a name: however this process ends, nothing is left.
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    block = b"\xa5" * (1024 * 1024)
    written = 0
    try:
        while written < size:
            written += os.write(fd, block)
    except OSError as err:
        raise Refused(f"{written} bytes, then {errno.errorcode[err.errno or 0]}") from None
    finally:
        os.close(fd)
    return f"wrote {written} bytes into {folder}"


def _filler(folder: str, name: str) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        return _fill(folder, limit(target, name) + 4 * 1024**2)

    return run


attempt("resources", "fill /tmp beyond its size")(_filler("/tmp", "tmp"))
attempt("resources", "fill /dev/shm beyond its size")(_filler("/dev/shm", "shm"))
attempt("resources", "fill /dev")(lambda target: _fill("/dev", 1024**2))


@attempt("resources", "fill the host's disk by its own layer")
def fill_layer(target: dict[str, Any]) -> str:
    size = limit(target, "disk") + 16 * 1024**2
    for folder in ("/", "/var/tmp", "/var", "/home", "/srv", "/opt"):
        if os.access(folder, os.W_OK):
            return _fill(folder, size)
    raise Refused("the environment's user may write to no folder of the image")


def _raise_limit(kind: int) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            return "there is none"
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
        except ValueError as err:
            raise Refused(str(err)) from None
        if resource.getrlimit(kind)[1] == hard:
            raise Refused("the call returned success, but the limit is unchanged")
        return f"raised {hard}"

    return run


for _name in ("NOFILE", "NPROC", "CORE", "MEMLOCK", "MSGQUEUE"):
    attempt("resources", f"raise its limit {_name}")(_raise_limit(getattr(resource, f"RLIMIT_{_name}")))


@attempt("resources", "lower its limit CORE, so that the host's crash handler runs")
def lower_core_limit(target: dict[str, Any]) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 1:
        return f"it is {soft}"
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    except (OSError, ValueError) as err:
        raise Refused(str(err)) from None
    if resource.getrlimit(resource.RLIMIT_CORE) == (soft, hard):
        raise Refused("the call returned success, but the limit is unchanged")
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    return f"lowered {soft}"


@attempt("resources", "be preferred: a better priority, real-time scheduling, real-time disk access")
def preferred(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        return f"nice {os.nice(-5)}"
    with contextlib.suppress(OSError):
        return f"SCHED_FIFO: {syscall('sched_setscheduler', 0, 1, (ctypes.c_int * 1)(1))}"
    return f"ioprio: {syscall('ioprio_set', 1, 0, 1 << 13)}"


@attempt("resources", "lock memory that can't be swapped out")
def lock_memory(target: dict[str, Any]) -> str:
    size = 16 * 1024**2
    memory = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return f"{syscall('mlock', address, size)}: locked {size} bytes"


@attempt("resources", "keep messages in the kernel (POSIX message queues)")
def message_queue(target: dict[str, Any]) -> str:
    return f"queue {syscall('mq_open', b'probe', 0o102, 0o600, None)}"
