"""Attempts on files of another environment, files of the host, and files that only netspace may write."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import struct
from typing import Any

from netspace.environment.audit.attempts.attempt import Refused, attempt, syscall, want

SEARCH_LIMIT = 50_000


def find(marker: str, roots: tuple[str, ...]) -> str:
    """Return the path of a small file below *roots* that contains *marker*; empty if there is none."""
    seen = 0
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [
                name for name in folders if os.path.join(folder, name) not in ("/proc/self", "/proc/thread-self")
            ]
            for name in names:
                seen += 1
                if seen > SEARCH_LIMIT:
                    return ""
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError, ValueError):
                    info = os.lstat(path)
                    if (info.st_mode & 0o170000) == 0o100000 and info.st_size < 65536:
                        with open(path, "rb") as stream:
                            if marker.encode() in stream.read(65536):
                                return path
    return ""


@attempt("files", "find a file of another environment")
def other_files(target: dict[str, Any]) -> str:
    marker = want(target, "peer", "marker")
    path = find(marker, ("/tmp", "/srv", "/var", "/home", "/run", "/dev/shm", "/mnt", "/media", "/opt"))
    if not path:
        raise Refused("no file here holds the peer's marker")
    return path


@attempt("files", "reach the host's files through /proc/1/root")
def proc_root(target: dict[str, Any]) -> str:
    for pid in ("1", "self"):
        for path in (f"/proc/{pid}/root/../../../etc/shadow", f"/proc/{pid}/root/var/lib/netspace"):
            with contextlib.suppress(OSError):
                os.stat(path)
                if path.endswith("shadow"):
                    with open(path, "rb") as stream:
                        if stream.read(1):
                            return path
                else:
                    return path
    raise Refused("no file of the host can be reached there")


@attempt("files", "write to the root of the image's own files")
def write_system(target: dict[str, Any]) -> str:
    with open("/usr/.probe", "w"):
        pass
    os.unlink("/usr/.probe")
    return "wrote below /usr as a plain user"


@attempt("files", "open a file by its handle (as container escapes of old did)")
def by_handle(target: dict[str, Any]) -> str:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 8, 1) + struct.pack("=QQ", 2, 0))
    return f"fd {syscall('open_by_handle_at', os.open('/', os.O_RDONLY), handle, 0)}"


@attempt("files", "change what /run/netspace says")
def change_card(target: dict[str, Any]) -> str:
    with open("/run/netspace/environment.json", "a"):
        return "environment.json can be written"


@attempt("files", "look into the folders of the host's netspace")
def netspace_folders(target: dict[str, Any]) -> str:
    for path in (
        "/var/lib/netspace",
        "/var/log/netspace",
        "/run/netspace/environments",
        "/proc/1/cwd/var/lib/netspace",
    ):
        with contextlib.suppress(OSError):
            return f"{path} has {os.listdir(path)}"
    raise Refused("none of these folders can be listed")


@attempt("files", "learn paths of the host from the mounts")
def host_paths(target: dict[str, Any]) -> str:
    with open("/proc/self/mountinfo") as stream:
        for line in stream:
            if "/var/lib/" in line or "/layers/" in line:
                return line.strip()
    raise Refused("mountinfo has no path of the host")


@attempt("files", "use a descriptor that was left open")
def inherited(target: dict[str, Any]) -> str:
    left = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{name}")
            if int(name) > 2 and not what.startswith(("pipe:", "/proc/")) and not _opened_by_itself(int(name), what):
                left.append(what)
    if left:
        return f"has {', '.join(left)}"
    raise Refused("no foreign descriptor is open")


def _opened_by_itself(descriptor: int, path: str) -> bool:
    """Return whether the descriptor is read-only and refers to the environment's own file at *path*.

    Such a descriptor gives no access to the host. libffi 3.5, by which Python calls C functions, keeps its own library
    file open.

    The C library for calls from Python (libffi 3.5) keeps its own file open.
    """
    with contextlib.suppress(OSError):
        own = os.stat(path)
        reads = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) == os.O_RDONLY
        return reads and stat.S_ISREG(own.st_mode) and os.path.samestat(own, os.fstat(descriptor))
    return False


@attempt("files", "escape by a symbolic link or a path of many levels")
def climb(target: dict[str, Any]) -> str:
    outside = os.stat("/" + "../" * 64)
    if not os.path.samestat(outside, os.stat("/")):
        return "/.. is not /"
    raise Refused("the root's parent is the root")
