"""Which system calls an environment may make. Deny by default; pure tables.

The profile ``strict`` lists what ordinary programs need, by family, each with why.
What is not listed fails with EPERM, except where a C library asks "is it there?" and
goes on without it when told ENOSYS. Refused on purpose, capabilities or not, is all
that makes namespaces, mounts, reaches into another process or widens the kernel's
attack surface: unshare, setns, mount and the new mount calls, keyrings, ptrace,
process_vm_*, userfaultfd, io_uring, bpf, perf, kexec, modules, file handles. Landlock
and seccomp stay, so that a program can narrow itself further.

Written from the manual pages of section 2; the names of both architectures stand in one
table, since a name unknown to one of them is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from netspace.errors import NetspaceError

_EPERM = 1
_ENOSYS = 38

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


class Family(NamedTuple):
    """Calls that belong together, and why they are allowed."""

    why: str
    calls: str


ALLOWED: Mapping[str, Family] = {
    "file content": Family(
        "read and write what is open or may be opened",
        "open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev "
        "preadv2 pwritev2 lseek sendfile splice tee copy_file_range fallocate ftruncate truncate fsync fdatasync "
        "syncfs sync_file_range fadvise64 readahead flock fcntl dup dup2 dup3 ioctl",
    ),
    "file names": Family(
        "folders, links, attributes",
        "stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents getdents64 getcwd "
        "chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat "
        "readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat "
        "futimesat umask getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr "
        "removexattr lremovexattr fremovexattr",
    ),
    "waiting": Family(
        "event loops",
        "pipe pipe2 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait "
        "epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime "
        "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    ),
    "memory": Family(
        "the allocator, shared libraries, just-in-time compilers",
        "brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock mlockall munlockall "
        "memfd_create membarrier pkey_alloc pkey_free pkey_mprotect mseal map_shadow_stack arch_prctl "
        "get_mempolicy",
    ),
    "processes": Family(
        "start, end, wait, signal: within the environment's own pid namespace",
        "fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid setpgid getpgrp "
        "getsid setsid kill tkill tgkill pidfd_open pidfd_send_signal rt_sigaction rt_sigprocmask rt_sigpending "
        "rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack pause alarm "
        "prctl seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
    "threads": Family(
        "locks and scheduling of one's own threads",
        "futex futex_waitv futex_wait futex_wake futex_requeue set_tid_address set_robust_list get_robust_list rseq "
        "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler "
        "sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min "
        "sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set getcpu restart_syscall",
    ),
    "identity": Family(
        "ask who one is; set only what the kernel lets a program without capabilities set",
        "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid "
        "setresgid setfsuid setfsgid setgroups capget capset",
    ),
    "limits and facts": Family(
        "ask about limits and the machine, lower one's own limits",
        "getrlimit setrlimit prlimit64 getrusage times sysinfo uname getrandom",
    ),
    "time": Family(
        "read clocks, sleep, timers; never set a clock",
        "time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep getitimer setitimer timer_create "
        "timer_settime timer_gettime timer_getoverrun timer_delete",
    ),
    "network": Family(
        "talk over sockets; which kinds may be made stands in SOCKETS",
        "bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg "
        "recvmsg sendmmsg recvmmsg shutdown",
    ),
    "System V IPC": Family(
        "shared memory and semaphores of databases, in the environment's own ipc namespace",
        "shmget shmat shmdt shmctl semget semop semtimedop semctl",
    ),
}

# Calls that a C library or runtime tries and does without where they don't exist.
ABSENT = (
    "clone3 io_uring_setup io_uring_enter io_uring_register io_setup cachestat statmount listmount setxattrat "
    "getxattrat listxattrat removexattrat file_getattr file_setattr"
)

# clone(2) without any of these: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_ANY, _ICMP, _TCP, _UDP, _ICMP6 = 0, 1, 6, 17, 58
_NETLINK_ROUTE = 0

_STREAM, _DGRAM = 1, 2
_KIND = 0xF  # of a socket's type; the rest is flags: SOCK_CLOEXEC, SOCK_NONBLOCK

# (address family, type, protocol); None for any. Other types and protocols would load kernel modules
# on request: a type alone does (SOCK_DCCP with protocol 0). Netlink's routing family stays, reading one's
# own namespace: getifaddrs, if_nameindex and getaddrinfo ask it. Without capabilities it changes nothing.
SOCKETS: tuple[tuple[int, int | None, int | None], ...] = (
    (_UNIX, None, None),
    *((family, _STREAM, protocol) for family in (_INET, _INET6) for protocol in (_ANY, _TCP)),
    *((family, _DGRAM, protocol) for family in (_INET, _INET6) for protocol in (_ANY, _UDP)),
    (_INET, _DGRAM, _ICMP),
    (_INET6, _DGRAM, _ICMP6),
    (_NETLINK, None, _NETLINK_ROUTE),
)

_TYPE = 0o170000
_NODES = (0, 0o010000, 0o100000, 0o140000)  # fifo, regular file (two ways), socket; no device
_PERSONALITIES = (0, 0xFFFFFFFF)  # set plain Linux; ask


def profile(name: str, machine: str | None = None) -> dict[str, Any]:
    """Return ``linux.seccomp`` of the OCI runtime configuration.

    :param machine: ``uname -m``; this machine's when absent.
    :raises NetspaceError: for an unknown profile or machine.
    """
    machine = machine or os.uname().machine
    if name != "strict":
        raise NetspaceError(f"there is no seccomp profile {name!r}")
    if machine not in ARCHITECTURES:
        raise NetspaceError(f"no seccomp profile is written for {machine}, only for {', '.join(ARCHITECTURES)}")
    rules: list[dict[str, Any]] = [_allow(calls.split()) for _, calls in ALLOWED.values()]
    rules.append({"names": ABSENT.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules.append(_allow(["clone"], _masked(0, NAMESPACE_FLAGS, 0)))
    for family, kind, protocol in SOCKETS:
        narrowed = [] if kind is None else [_masked(1, _KIND, kind)]
        narrowed += [] if protocol is None else [_equal(2, protocol)]
        rules.append(_allow(["socket"], _equal(0, family), *narrowed))
    rules.append(_allow(["socketpair"], _equal(0, _UNIX)))
    for node in _NODES:
        rules.append(_allow(["mknod"], _masked(1, _TYPE, node)))
        rules.append(_allow(["mknodat"], _masked(2, _TYPE, node)))
    rules += [_allow(["personality"], _equal(0, value)) for value in _PERSONALITIES]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": rules,
    }


def _allow(names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    return {**rule, "args": list(args)} if args else rule


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
