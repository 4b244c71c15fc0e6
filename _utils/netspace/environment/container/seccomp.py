"""Tables of the system calls that an environment may make. All other calls are denied.

The profile ``strict`` lists the calls that ordinary programs need, by family, each with the reason. The profile
``standard`` adds calls that some servers need (``STANDARD``). A call that is not listed fails with EPERM, or with
ENOSYS if C libraries test for the call and can do without it. ``NEVER`` lists the calls that neither profile allows,
regardless of the program's capabilities: calls that make namespaces or mounts, access another process or widen the
kernel's attack surface. Some calls are allowed only with certain arguments (``seccomp_arguments``). Landlock and
seccomp stay allowed, so that a program can restrict itself further. ``seccomp_file`` reads an operator's own profiles;
this module uses no file.

Source: the manual pages of section 2. One table has the names of both architectures, since a name that one of them
doesn't have is skipped.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from netspace.environment.container.seccomp_arguments import NARROWED, changing, conditions, equal, masked, pretended
from netspace.errors import NetspaceError

_EPERM = 1
_ENOSYS = 38

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


class Family(NamedTuple):
    """System calls that belong together, and the reason why they are allowed or never allowed."""

    why: str
    calls: str


ALLOWED: Mapping[str, Family] = {
    "file content": Family(
        "open, read and write files, within their permissions",
        "open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev "
        "preadv2 pwritev2 lseek sendfile splice tee copy_file_range fallocate ftruncate truncate fsync fdatasync "
        "sync_file_range fadvise64 readahead flock fcntl dup dup2 dup3 ioctl",
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
        "read own ids; set only ids that the kernel lets a program without capabilities set",
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
        "talk over sockets; SOCKETS has the kinds that may be made",
        "bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg "
        "recvmsg sendmmsg recvmmsg shutdown",
    ),
    "System V IPC": Family(
        "shared memory and semaphores of databases, in the environment's own ipc namespace",
        "shmget shmat shmdt shmctl semget semop semtimedop semctl",
    ),
}

STANDARD: Mapping[str, Family] = {
    "asynchronous file access": Family(
        "databases that read and write past the page cache (MariaDB, ScyllaDB; nginx `aio on`)",
        "io_setup io_destroy io_submit io_getevents io_pgetevents io_cancel",
    ),
    "memory placement": Family(
        "put one's own pages on a NUMA node (Java's UseNUMA, MariaDB, PostgreSQL 18, MongoDB)",
        "mbind set_mempolicy set_mempolicy_home_node",
    ),
    "odd memory": Family(
        "memory for keys that even the kernel doesn't map; file mappings of old databases",
        "memfd_secret remap_file_pages",
    ),
    "System V message queues": Family(
        "older servers and PHP, in the environment's own ipc namespace",
        "msgget msgsnd msgrcv msgctl",
    ),
}

# Calls for a tender: a program that runs a kernel as its guest, opens a few files, and starts no program.
TENDER: Mapping[str, Family] = {
    "starting": Family("become the tender; load its libraries", "execve arch_prctl set_tid_address brk"),
    "files": Family(
        "open, read and write files of its image and devices",
        "open openat close close_range read write readv writev pread64 pwrite64 preadv pwritev lseek fcntl dup dup2 "
        "dup3 ioctl stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat "
        "getcwd chdir fchdir getdents64 fadvise64 fsync fdatasync",
    ),
    "waiting": Family(
        "event loops",
        "pipe pipe2 select pselect6 poll ppoll epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 "
        "signalfd4 timerfd_create timerfd_settime timerfd_gettime restart_syscall",
    ),
    "memory": Family(
        "the guest's memory, and code made for it as it runs",
        "mmap munmap mremap mprotect madvise msync memfd_create ftruncate fallocate membarrier",
    ),
    "threads": Family(
        "a thread for each processor of the guest's, and for its devices; no process",
        "futex futex_waitv set_robust_list get_robust_list rseq sched_yield sched_getaffinity sched_setaffinity "
        "gettid getpid getppid tgkill kill exit exit_group rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn "
        "rt_sigtimedwait rt_sigsuspend sigaltstack prctl seccomp",
    ),
    "time": Family(
        "read clocks, sleep, timers",
        "time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep timer_create timer_settime "
        "timer_gettime timer_getoverrun timer_delete",
    ),
    "facts": Family(
        "its ids, the machine, its limits, random numbers",
        "getuid geteuid getgid getegid uname sysinfo getrandom getrlimit prlimit64 getrusage getcpu",
    ),
    "network": Family(
        "connect to the broker for its guest; TENDER_SOCKETS has the kinds that may be made",
        "connect bind getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg recvmsg shutdown",
    ),
}

NEVER: Mapping[str, Family] = {
    "namespaces": Family(
        "a user namespace gives every capability in it, and with that most of the kernel", "unshare setns clone3"
    ),
    "mounts": Family(
        "remove a mount that masks a file, or hide a file that is checked",
        "mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick "
        "mount_setattr",
    ),
    "other processes": Family(
        "read or steer another program, past its own rights",
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp move_pages "
        "migrate_pages",
    ),
    "keyrings": Family("belong to a user, not to a namespace", "keyctl add_key request_key"),
    "programs in the kernel": Family("bpf and tracing see the whole host", "bpf perf_event_open lookup_dcookie"),
    "io_uring": Family(
        "does what this filter would refuse, without calls that the filter sees",
        "io_uring_setup io_uring_enter io_uring_register",
    ),
    "faults": Family("pauses the kernel in the middle of a copy, as many exploits need", "userfaultfd"),
    "modules and kernels": Family(
        "other code in the kernel", "init_module finit_module delete_module kexec_load kexec_file_load"
    ),
    "file handles": Family(
        "open a file without access to the folders above it; watch a whole file system, or change its quotas",
        "open_by_handle_at name_to_handle_at fanotify_init fanotify_mark quotactl quotactl_fd",
    ),
    "clocks": Family("are the host's", "settimeofday clock_settime adjtimex clock_adjtime stime"),
    "the machine": Family(
        "reboot, swap, ports, names, logs and accounts of the host",
        "reboot swapon swapoff sethostname setdomainname syslog acct iopl ioperm vhangup nfsservctl",
    ),
    "all disks": Family(
        "write all of the host's changed data, and show by their duration how much that is", "sync syncfs"
    ),
    "caches": Family("reveals which pages of a shared image others have read", "cachestat"),
    "old or odd": Family(
        "ordinary programs don't use them, so they are little tested",
        "modify_ldt uselib ustat sysfs _sysctl vmsplice mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
        "mq_getsetattr lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    ),
}

# Calls that a C library or a language runtime tries, and does without if the kernel doesn't have them.
ABSENT = (
    "clone3 io_uring_setup io_uring_enter io_uring_register io_setup cachestat statmount listmount setxattrat "
    "getxattrat listxattrat removexattrat file_getattr file_setattr"
)

_THREAD = 0x00010000  # CLONE_THREAD

# Flags that clone(2) must not have: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_ANY, _ICMP, _TCP, _UDP, _ICMP6 = 0, 1, 6, 17, 58
_NETLINK_ROUTE = 0

_STREAM, _DGRAM = 1, 2
_KIND = 0xF  # of a socket's type; the rest is flags: SOCK_CLOEXEC, SOCK_NONBLOCK

# (address family, type, protocol); None for any. Other types and protocols would load kernel modules on
# request: a type alone does (SOCK_DCCP with protocol 0). Netlink's routing family is allowed, since getifaddrs,
# if_nameindex and getaddrinfo read their own namespace by it. Without capabilities it changes nothing.
SOCKETS: tuple[tuple[int, int | None, int | None], ...] = (
    (_UNIX, None, None),
    *((family, _STREAM, protocol) for family in (_INET, _INET6) for protocol in (_ANY, _TCP)),
    *((family, _DGRAM, protocol) for family in (_INET, _INET6) for protocol in (_ANY, _UDP)),
    (_INET, _DGRAM, _ICMP),
    (_INET6, _DGRAM, _ICMP6),
    (_NETLINK, None, _NETLINK_ROUTE),
)

TENDER_SOCKETS = tuple(one for one in SOCKETS if one[0] == _INET and one[2] in (_ANY, _TCP, _UDP))
# For a tender that looks for its device among all interfaces (getifaddrs) before it attaches to it.
_LOOKING = (_NETLINK, 3, _NETLINK_ROUTE)

PROFILES = ("strict", "standard")

_UPPER = 1 << 32  # a bit of an argument above those that the kernel reads for an int
_TYPE = 0o170000
_NODES = (0, 0o010000, 0o100000, 0o140000)  # fifo, regular file (two ways), socket; no device
_PERSONALITIES = (0, 0xFFFFFFFF)  # set plain Linux; ask


def profile(name: str, machine: str | None = None) -> dict[str, Any]:
    """Return ``linux.seccomp`` of the OCI runtime configuration.

    :param machine: the architecture, as ``uname -m`` prints it; by default, this machine's.
    :raises NetspaceError: for an unknown profile or machine.
    """
    if name not in PROFILES:
        raise NetspaceError(f"there is no seccomp profile {name!r}")
    families = [*ALLOWED.values(), *(STANDARD.values() if name == "standard" else ())]
    allowed = {call for family in families for call in family.calls.split()}
    rules = _of_families(families)
    absent = [call for call in ABSENT.split() if call not in allowed]
    rules.append({"names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules.append(_allow(["clone"], masked(0, NAMESPACE_FLAGS, 0)))
    for family, kind, protocol in SOCKETS:
        narrowed = [] if kind is None else [masked(1, _KIND, kind)]
        narrowed += [] if protocol is None else [equal(2, protocol)]
        rules.append(_allow(["socket"], equal(0, family), *narrowed))
    rules.append(_allow(["socketpair"], equal(0, _UNIX)))
    for node in _NODES:
        rules.append(_allow(["mknod"], masked(1, _TYPE, node)))
        rules.append(_allow(["mknodat"], masked(2, _TYPE, node)))
    rules += [_allow(["personality"], equal(0, value)) for value in _PERSONALITIES]
    return _denying(rules, machine)


def tender(machine: str | None = None, *, looks: bool = False) -> dict[str, Any]:
    """Return the profile of a unikernel's tender: narrower than ``strict``, with threads but no new process.

    :param looks: whether the tender may list the interfaces of its namespace.
    :raises NetspaceError: for an unknown machine.
    """
    allowed = {call for family in TENDER.values() for call in family.calls.split()}
    rules = _of_families(TENDER.values())
    absent = [call for call in ABSENT.split() if call not in allowed]
    rules.append({"names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules.append(_allow(["clone"], masked(0, NAMESPACE_FLAGS | _THREAD, _THREAD)))
    rules.append(_allow(["personality"], equal(0, _PERSONALITIES[-1])))
    for family, kind, protocol in (*TENDER_SOCKETS, *([_LOOKING] if looks else [])):
        rules.append(_allow(["socket"], equal(0, family), masked(1, _KIND, kind or 0), equal(2, protocol or 0)))
    return _denying(rules, machine)


def _of_families(families: Iterable[Family]) -> list[dict[str, Any]]:
    """Return the rules that allow the calls of *families*.

    Calls in ``NARROWED`` are allowed only under their conditions.
    """
    rules: list[dict[str, Any]] = []
    for family in families:
        calls = family.calls.split()
        rules.append(_allow([call for call in calls if call not in NARROWED]))
        for call in calls:
            if call in NARROWED:
                rules += [_allow([call], *held) for held in conditions(NARROWED[call])]
                done = {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
                rules += [{**done, "args": held} for held in pretended(NARROWED[call])]
    return rules


def _denying(rules: list[dict[str, Any]], machine: str | None) -> dict[str, Any]:
    """Return a profile that permits only the calls in *rules*."""
    machine = machine or os.uname().machine
    if machine not in ARCHITECTURES:
        raise NetspaceError(f"no seccomp profile is written for {machine}, only for {', '.join(ARCHITECTURES)}")
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": rules,
    }


def _allow(names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    return {**rule, "args": list(args)} if args else rule


class Answer(NamedTuple):
    """A profile's answer to a call: the action without the prefix ``SCMP_ACT_``, and the call's errno."""

    action: str
    errno: int = 0

    @property
    def passes(self) -> bool:
        return self.action in ("ALLOW", "LOG")


def answer(rules: Mapping[str, Any], name: str, arguments: Sequence[int] = ()) -> Answer:
    """Return a profile's answer to one call, combining its rules as libseccomp(3) does.

    A rule without conditions has precedence over rules with conditions.

    :param arguments: the call's arguments; missing arguments are 0.
    """
    given = [*arguments, *[0] * (6 - len(arguments))]
    fitting = [
        rule
        for rule in rules.get("syscalls") or ()
        if name in rule["names"] and all(_holds(condition, given) for condition in rule.get("args") or ())
    ]
    if not fitting:
        return _answer(rules["defaultAction"], rules.get("defaultErrnoRet"))
    rule = next((rule for rule in fitting if not rule.get("args")), fitting[0])
    return _answer(rule["action"], rule.get("errnoRet"))


def _answer(action: str, errno: int | None) -> Answer:
    short = action.removeprefix("SCMP_ACT_")
    return Answer(short, (_EPERM if errno is None else errno) if short == "ERRNO" else 0)


def _holds(condition: Mapping[str, Any], arguments: Sequence[int]) -> bool:
    found, value = arguments[condition["index"]], condition["value"]
    comparison = condition["op"].removeprefix("SCMP_CMP_")
    if comparison == "MASKED_EQ":
        return bool(found & value == condition.get("valueTwo", 0))
    return bool(getattr(operator, comparison.lower())(found, value))


def dangers(rules: Mapping[str, Any]) -> list[str]:
    """Return the dangerous calls that a profile allows.

    These are calls in ``NEVER`` (even if allowed only conditionally), clone flags that make namespaces, and arguments
    that ``NARROWED`` refuses.
    """
    passing = [rule for rule in rules.get("syscalls") or () if _answer(rule["action"], 0).passes]
    named = {name for rule in passing for name in rule["names"]}
    found = [
        call
        for family in NEVER.values()
        for call in family.calls.split()
        if call in named or answer(rules, call).passes
    ]
    bits = (bit for bit in (1 << place for place in range(32)) if bit & NAMESPACE_FLAGS)
    if any(answer(rules, "clone", (bit,)).passes for bit in bits):
        found.append("clone with a new namespace")
    for call, narrow in NARROWED.items():
        found += [
            f"{call} with {name}"
            for name, value in narrow.refused.items()
            if any(answer(rules, call, changing(narrow, word)).passes for word in (value, _UPPER | value))
        ]
    return sorted(found)
