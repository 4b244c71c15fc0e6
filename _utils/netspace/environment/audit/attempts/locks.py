"""Attempts on locks, notifications and other means by which an environment could notice another one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
from typing import Any

from netspace.environment.audit.attempts.attempt import LIBC, PATIENCE, Refused, attempt, syscall, want


@attempt("locks", "see another environment's flock on the same image")
def see_flock(target: dict[str, Any]) -> str:
    path = want(target, "peer", "locked")
    with open(path, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{path} is locked by the peer"
    raise Refused("the lock is free here, so this is not the file that the peer locked")


@attempt("locks", "see another environment's accesses by inotify on the same image")
def see_inotify(target: dict[str, Any]) -> str:
    path = want(target, "peer", "touched")
    fd = LIBC.inotify_init1(os.O_CLOEXEC)
    if fd < 0 or LIBC.inotify_add_watch(fd, path.encode(), 0x00000FFF) < 0:
        raise Refused(f"inotify: {os.strerror(ctypes.get_errno())}")
    ready, _, _ = select.select([fd], [], [], 1.5)
    os.close(fd)
    if ready:
        return f"saw events on {path}"
    raise Refused("no event in 1.5 s, while the peer opens the file ten times a second")


@attempt("locks", "use System V shared memory of another environment")
def sysv(target: dict[str, Any]) -> str:
    key = want(target, "peer", "shm_key")
    return f"segment {syscall('shmget', key, 0, 0o600)}"


@attempt("locks", "connect to another environment's abstract socket")
def abstract(target: dict[str, Any]) -> str:
    name = want(target, "peer", "abstract")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect("\0" + name)
    return "connected"


@attempt("locks", "learn of other programs' locks")
def all_locks(target: dict[str, Any]) -> str:
    with open("/proc/locks") as stream:
        foreign = [line for line in stream if line.split()[4] in ("0", "-1")]
    if foreign:
        return f"/proc/locks shows {len(foreign)} of processes that are not here"
    raise Refused("/proc/locks shows no lock of another environment")


@attempt("locks", "watch a whole file system (fanotify)")
def fanotify(target: dict[str, Any]) -> str:
    return f"fd {syscall('fanotify_init', 0x200, 0)}"
