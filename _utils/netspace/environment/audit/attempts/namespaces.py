"""Attempts on namespaces, mounts and privileges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Any

from netspace.environment.audit.attempts.attempt import LIBC, MACHINE, Attempt, Refused, Skip, attempt, syscall

CLONE_NEW = {"mount": 0x20000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
             "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}  # fmt: skip


def _unshare(flag: int) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        syscall("unshare", flag)
        return "a new namespace of its own"

    return run


for _name, _flag in CLONE_NEW.items():
    attempt("namespaces", f"unshare a {_name} namespace")(_unshare(_flag))


@attempt("namespaces", "clone with a new user namespace")
def clone_user(target: dict[str, Any]) -> str:
    if MACHINE not in ("x86_64", "aarch64"):
        raise Skip(MACHINE)
    number = 56 if MACHINE == "x86_64" else 220
    pid = LIBC.syscall(number, CLONE_NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise Refused(os.strerror(ctypes.get_errno()))
    os.waitpid(pid, 0)
    return "a child in a user namespace of its own"


@attempt("namespaces", "clone3 (whose arguments a filter can't see)")
def clone_three(target: dict[str, Any]) -> str:
    arguments = (ctypes.c_uint64 * 11)(CLONE_NEW["user"], 0, 0, 0, signal.SIGCHLD)
    pid = syscall("clone3", arguments, 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "clone3 worked"


@attempt("namespaces", "enter another namespace of process 1")
def enter(target: dict[str, Any]) -> str:
    for name in ("net", "mnt", "user", "pid", "ipc", "uts"):
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
            syscall("setns", fd, 0)
            return f"entered {name}"
    raise Refused("no namespace can be entered")


@attempt("namespaces", "find another environment's network namespace")
def find_netns(target: dict[str, Any]) -> str:
    for folder in ("/run/netns", "/var/run/netns"):
        with contextlib.suppress(OSError):
            if os.listdir(folder):
                return f"{folder} has {os.listdir(folder)}"
    raise Refused("no network namespace can be listed")


@attempt("namespaces", "mount a tmpfs")
def mount_tmpfs(target: dict[str, Any]) -> str:
    syscall("mount", b"x", b"/tmp", b"tmpfs", 0, None)
    return "mounted"


@attempt("namespaces", "bind-mount")
def mount_bind(target: dict[str, Any]) -> str:
    syscall("mount", b"/", b"/tmp", None, 4096, None)
    return "mounted"


@attempt("namespaces", "unmount what hides kernel files")
def unmount(target: dict[str, Any]) -> str:
    syscall("umount2", b"/proc/kcore", 2)
    return "unmounted"


@attempt("namespaces", "the new mount interface (fsopen, open_tree)")
def new_mount(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        return f"fsopen: fd {syscall('fsopen', b'tmpfs', 0)}"
    return f"open_tree: fd {syscall('open_tree', -100, b'/', 1)}"


@attempt("namespaces", "chroot and pivot_root")
def change_root(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        syscall("chroot", b"/tmp")
        return "chroot"
    syscall("pivot_root", b"/tmp", b"/tmp")
    return "pivot_root"


@attempt("processes", "become root")
def become_root(target: dict[str, Any]) -> str:
    if os.getuid() == 0:
        return "is root already"
    syscall("setuid", 0)
    return "setuid(0)"


@attempt("processes", "hold any capability")
def capabilities(target: dict[str, Any]) -> str:
    with open("/proc/self/status") as stream:
        sets = dict(line.split(":", 1) for line in stream if line.startswith(("Cap", "NoNewPrivs", "Seccomp:")))
    held = [name for name, value in sets.items() if name.startswith("Cap") and int(value, 16)]
    if held:
        return f"holds {held}"
    if sets["NoNewPrivs"].strip() != "1" or sets["Seccomp"].strip() != "2":
        return f"no_new_privs {sets['NoNewPrivs'].strip()}, seccomp {sets['Seccomp'].strip()}"
    raise Refused("all capability sets are empty; no_new_privs and a seccomp filter are set")


@attempt("processes", "run a setuid program as root")
def setuid_program(target: dict[str, Any]) -> str:
    for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/bin/su", "/usr/bin/chsh"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_mode & 0o4000:
                if not os.statvfs(path).f_flag & os.ST_NOSUID:
                    with open("/proc/self/status") as stream:
                        if "NoNewPrivs:\t1" not in stream.read():
                            return f"{path} would be obeyed"
                raise Refused("the mount is nosuid, or no_new_privs is set")
    raise Skip("no setuid program in this image")


@attempt("processes", "change the host name")
def host_name(target: dict[str, Any]) -> str:
    syscall("sethostname", b"probe", 5)
    return "changed"
