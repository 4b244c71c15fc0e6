"""Attempts on processes outside, and on their memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

from netspace.environment.audit.attempts.attempt import Refused, attempt, syscall, want


def others() -> list[int]:
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and int(entry) not in (1, os.getpid(), os.getppid())
    ]


@attempt("processes", "see a process of another environment or of the host")
def see_processes(target: dict[str, Any]) -> str:
    marker = want(target, "peer", "marker").encode()
    for pid in others():
        for file in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/{file}", "rb") as stream:
                    if marker in stream.read(65536):
                        return f"process {pid} is the peer's"
    raise Refused("no process of the peer is visible")


@attempt("processes", "signal a process outside")
def send_signal(target: dict[str, Any]) -> str:
    here = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    for pid in [pid for pid in range(2, 3000) if pid not in here]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            if os.path.exists(f"/proc/{pid}"):
                continue  # this process belongs to this environment, and started meanwhile
            os.kill(pid, 0)  # fails if it was started and ended meanwhile
            return f"process {pid} can be signalled"
    raise Refused("none of the process ids 2 to 2999 outside can be signalled")


@attempt("processes", "trace another process")
def trace(target: dict[str, Any]) -> str:
    syscall("ptrace", 0x4206, 1, 0, 0)  # PTRACE_SEIZE: unlike ATTACH, it stops nothing
    return "attached to process 1"


@attempt("processes", "trace a child of its own")
def trace_child(target: dict[str, Any]) -> str:
    syscall("ptrace", 0, 0, 0, 0)
    return "PTRACE_TRACEME"


@attempt("memory", "read another process's memory")
def read_memory(target: dict[str, Any]) -> str:
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    return f"{syscall('process_vm_readv', 1, vector, 1, vector, 1, 0)} bytes"


@attempt("memory", "userfaultfd")
def user_fault(target: dict[str, Any]) -> str:
    return f"fd {syscall('userfaultfd', 0)}"


@attempt("memory", "see the peer's marker in shared anonymous memory of /dev/shm")
def shared_memory(target: dict[str, Any]) -> str:
    want(target, "peer", "marker")
    found = [name for name in os.listdir("/dev/shm") if name.startswith("victim")]
    if found:
        return f"/dev/shm has {found}"
    raise Refused("/dev/shm has no file of the peer")


@attempt("memory", "write another process's memory through /proc")
def write_memory(target: dict[str, Any]) -> str:
    for pid in [1, *others()]:
        if pid != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
                if (want(target, "peer", "marker")).encode() in stream.read(65536):
                    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
                    return f"opened the memory of the peer's process {pid}"
    raise Refused("no process of the peer is visible")


@attempt("memory", "read the machine's memory")
def physical_memory(target: dict[str, Any]) -> str:
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/proc/kpagecount"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if stream.read(1):
                return f"read {path}"
    raise Refused("no such file exists, or it is empty")


@attempt("memory", "learn which pages of a shared image others have read (cachestat)")
def cached_pages(target: dict[str, Any]) -> str:
    with open("/proc/self/exe", "rb") as stream:
        syscall("cachestat", stream.fileno(), (ctypes.c_uint64 * 2)(0, 4096), (ctypes.c_uint64 * 5)(), 0)
    return "cachestat answers"


@attempt("memory", "advise or move another process's memory")
def advise(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        return f"move_pages: {syscall('move_pages', 1, 0, None, None, None, 0)}"
    vector = (ctypes.c_void_p * 2)(0, 4096)
    return f"process_madvise: {syscall('process_madvise', syscall('pidfd_open', 1, 0), vector, 1, 20, 0)}"
