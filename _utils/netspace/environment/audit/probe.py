"""Program of the audit: tries to break out of an environment, from *inside* it.

It needs only the standard library (Python 3.9 or newer), uses ``pika`` if the image has it, and imports nothing of
netspace. It reads one JSON object from standard input, makes each attempt below once, bounded in count and time, and
prints a JSON list of rows ``{name, group, outcome, detail}``; *outcome* is ``refused`` (good), ``succeeded`` (isolation
is broken) or ``skipped`` (there is no target).

The input names the targets. The program skips attempts on absent ones::

    {"peer": {"addresses": [...], "port": 7000, "mailbox": "mailbox.x", "link": "link.x.y", "account": "env.x",
              "marker": "text in the peer's files", "locked": "/path", "touched": "/path",
              "shm_key": 4711, "abstract": "name of a socket"},
     "host": {"addresses": [...], "port": 22, "broker_ports": [...]},
     "outside": {"addresses": [...], "port": 80},
     "limits": {"memory": bytes, "pids": 64, "files": 1024, "tmp": bytes, "shm": bytes, "disk": bytes}}

A value ``{"skip": "why"}`` gives the reason.

Each attempt asks for only a little beyond a limit, and does no harm to the host if it succeeds.

With the argument ``victim`` the program is the peer, a target of the attempts: it holds a lock, opens a file again and
again, keeps the marker in a file and in memory, and listens. It prints ``ready`` and then runs until it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
CLONE_NEW = {"mount": 0x20000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
             "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}  # fmt: skip
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

GROUPS = ("files", "locks", "memory", "processes", "namespaces", "kernel", "devices", "network", "broker", "time",
          "resources")  # fmt: skip

Attempt = Callable[[dict[str, Any]], str]
ATTEMPTS: list[tuple[str, str, Attempt]] = []


class Skip(Exception):
    """The attempt has no target here."""


class Refused(Exception):
    """The attempt failed, as it should."""


def attempt(group: str, name: str) -> Callable[[Attempt], Attempt]:
    """Register an attempt, which returns a text on its success, or raises Refused, OSError or Skip."""

    def register(function: Attempt) -> Attempt:
        ATTEMPTS.append((group, name, function))
        return function

    return register


def syscall(name: str, *arguments: Any) -> int:
    """Call the kernel directly, without libc's wrappers; raise OSError if the call fails."""
    numbers = NUMBERS[name]
    number = numbers[0] if MACHINE == "x86_64" else numbers[1]
    if number < 0 or MACHINE not in ("x86_64", "aarch64"):
        raise Skip(f"no {name} on {MACHINE}")
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def want(target: dict[str, Any], *keys: str) -> Any:
    """Return the value at *keys* of the input. If the value is absent, raise Skip with the input's reason, if any."""
    value: Any = target
    for key in keys:
        if isinstance(value, dict) and "skip" in value:
            break
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict) and "skip" in value:
        raise Skip(str(value["skip"]))
    if value in (None, [], ""):
        raise Skip(f"no {':'.join(keys)} to aim at")
    return value


# -- files ---------------------------------------------------------------------------------
SEARCH_LIMIT = 50_000


def find(marker: str, roots: tuple[str, ...]) -> str:
    """Look for *marker* in small files below *roots*; return the path of one that holds it."""
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
    raise Refused("nothing of the host's there")


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
    raise Refused("none of them is there")


@attempt("files", "learn paths of the host from the mounts")
def host_paths(target: dict[str, Any]) -> str:
    with open("/proc/self/mountinfo") as stream:
        for line in stream:
            if "/var/lib/" in line or "/layers/" in line:
                return line.strip()
    raise Refused("mountinfo names none")


@attempt("files", "use a descriptor that was left open")
def inherited(target: dict[str, Any]) -> str:
    left = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{name}")
            if int(name) > 2 and not what.startswith(("pipe:", "/proc/")):
                left.append(what)
    if left:
        return f"has {', '.join(left)}"
    raise Refused("it has none but its own")


@attempt("files", "escape by a symbolic link or a path of many levels")
def climb(target: dict[str, Any]) -> str:
    outside = os.stat("/" + "../" * 64)
    if not os.path.samestat(outside, os.stat("/")):
        return "/.. is not /"
    raise Refused("the root's parent is the root")


# -- locks and notifications -----------------------------------------------------------------
@attempt("locks", "see another environment's flock on the same image")
def see_flock(target: dict[str, Any]) -> str:
    path = want(target, "peer", "locked")
    with open(path, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{path} is locked by the peer"
    raise Refused("the file's lock is free: it is another file")


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
    raise Refused("no event in 1.5 s, while the peer opens it ten times a second")


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
    raise Refused("/proc/locks shows its own at most")


@attempt("locks", "watch a whole file system (fanotify)")
def fanotify(target: dict[str, Any]) -> str:
    return f"fd {syscall('fanotify_init', 0x200, 0)}"


# -- processes and memory ---------------------------------------------------------------------
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
    raise Refused("no process here is the peer's")


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
    raise Refused("2998 process ids tried")


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
    raise Refused("/dev/shm is its own")


@attempt("memory", "write another process's memory through /proc")
def write_memory(target: dict[str, Any]) -> str:
    for pid in [1, *others()]:
        if pid != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
                if (want(target, "peer", "marker")).encode() in stream.read(65536):
                    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
                    return f"opened the memory of the peer's process {pid}"
    raise Refused("no process of the peer's is here")


@attempt("memory", "read the machine's memory")
def physical_memory(target: dict[str, Any]) -> str:
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/proc/kpagecount"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if stream.read(1):
                return f"read {path}"
    raise Refused("no such file, or an empty one")


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


# -- namespaces, mounts, privileges --------------------------------------------------------------
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
    raise Refused("none to be seen")


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
    raise Refused("five empty sets, no_new_privs, a filter")


@attempt("processes", "run a setuid program as root")
def setuid_program(target: dict[str, Any]) -> str:
    for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/bin/su", "/usr/bin/chsh"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_mode & 0o4000:
                if not os.statvfs(path).f_flag & os.ST_NOSUID:
                    with open("/proc/self/status") as stream:
                        if "NoNewPrivs:\t1" not in stream.read():
                            return f"{path} would be obeyed"
                raise Refused("nosuid or no_new_privs")
    raise Skip("no setuid program in this image")


@attempt("processes", "change the host name")
def host_name(target: dict[str, Any]) -> str:
    syscall("sethostname", b"probe", 5)
    return "changed"


# -- kernel interfaces ---------------------------------------------------------------------------
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
    raise Refused("none can be opened for writing")


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
    raise Refused("all masked or absent")


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
    raise Refused("all masked")


# -- devices -------------------------------------------------------------------------------------
@attempt("devices", "make a block device and read the host's disk")
def make_disk(target: dict[str, Any]) -> str:
    for folder in ("/tmp", "/dev", "/dev/shm"):
        for major, minor in ((8, 0), (259, 0), (254, 0), (7, 0)):
            with contextlib.suppress(OSError):
                os.mknod(f"{folder}/probe-disk", 0o600 | 0o060000, os.makedev(major, minor))
                os.unlink(f"{folder}/probe-disk")
                return f"made a block device in {folder}"
    raise Refused("none can be made")


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
    raise Refused("none is there")


@attempt("devices", "type into a terminal of the host")
def terminal(target: dict[str, Any]) -> str:
    for path in ("/dev/tty", "/dev/console", "/dev/ptmx", "/dev/tty0"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            fcntl.ioctl(fd, 0x5412, b"\0")  # TIOCSTI
            return f"typed into {path}"
    raise Refused("there is no terminal")


# -- network -----------------------------------------------------------------------------------------
def reach(address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, port))
    return f"connected to {address} port {port}"


def _reach(who: str, protocol: str) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        problems = []
        for address in want(target, who, "addresses"):
            try:
                if protocol == "tcp":
                    return reach(address, want(target, who, "port"))
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as peer:
                    peer.settimeout(PATIENCE)
                    peer.connect((address, want(target, who, "port")))
                    peer.send(b"probe")
                    if peer.recv(16):
                        return f"{address} answered"
            except OSError as err:
                problems.append(f"{address}: {err}")
        raise Refused("; ".join(problems))

    return run


for _who in ("peer", "host", "outside"):
    for _protocol in ("tcp", "udp"):
        attempt("network", f"reach {_who} by {_protocol}")(_reach(_who, _protocol))


def _socket(family: int, kind: int, protocol: int) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        with socket.socket(family, kind, protocol):
            return "opened"

    return run


attempt("network", "open a raw IP socket")(_socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("network", "open a packet socket")(_socket(17, socket.SOCK_RAW, 0x0300))
attempt("network", "open a vsock socket")(_socket(40, socket.SOCK_STREAM, 0))
attempt("network", "open a kernel crypto socket")(_socket(38, socket.SOCK_SEQPACKET, 0))
attempt("network", "open a netfilter netlink socket")(_socket(16, socket.SOCK_RAW, 12))
attempt("network", "open a DCCP socket, named")(_socket(socket.AF_INET, 6, 33))
attempt("network", "open a DCCP socket, by its type alone")(_socket(socket.AF_INET, 6, 0))
attempt("network", "open an SCTP socket")(_socket(socket.AF_INET, socket.SOCK_STREAM, 132))
attempt("network", "open a Bluetooth socket")(_socket(31, socket.SOCK_RAW, 1))


@attempt("network", "take the interface down")
def interface_down(target: dict[str, Any]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                fcntl.ioctl(end, 0x8914, struct.pack("=16sh14x", name.encode(), 0x42))  # SIOCSIFFLAGS, promiscuous
                return f"changed {name}"
    raise Refused("no interface's flags can be changed")


@attempt("network", "mark packets or pretend to be another address")
def transparent(target: dict[str, Any]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, 36, 1)  # SO_MARK
            return "SO_MARK"
        end.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
    return "IP_TRANSPARENT"


@attempt("network", "give itself an address")
def own_address(target: dict[str, Any]) -> str:
    # RTM_NEWADDR for lo: nlmsghdr, ifaddrmsg, IFA_LOCAL.
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 1) + struct.pack(
        "=HH4s", 8, 2, socket.inet_aton("198.18.99.99")
    )
    with socket.socket(16, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(1)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), 20, 0x0605, 1, 0) + body)
        answer = netlink.recv(4096)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise Refused(os.strerror(-code))
    return "added an address"


@attempt("network", "bind a host interface or see one")
def see_interfaces(target: dict[str, Any]) -> str:
    names = {name for _, name in socket.if_nameindex()}
    if names - {"lo", "eth0"}:
        return f"sees {sorted(names)}"
    raise Refused(f"only {sorted(names)}")


# -- broker ---------------------------------------------------------------------------------------------
@attempt("broker", "reach the broker's management or distribution port")
def broker_ports(target: dict[str, Any]) -> str:
    problems = []
    for port in want(target, "host", "broker_ports"):
        known = (target.get("host") or {}).get("addresses", [])
        for address in ["127.0.0.1", "::1", *(known if isinstance(known, list) else [])]:
            try:
                return reach(address, port)
            except OSError as err:
                problems.append(err.errno or 0)
    raise Refused(f"{len(problems)} tries")


def _channel(target: dict[str, Any]) -> Any:
    try:
        with open("/run/netspace/environment.json") as stream:
            card = json.load(stream)
        account = card["broker"]
    except (OSError, KeyError):
        raise Skip("it has no account on the broker") from None
    try:
        import pika
    except ImportError:
        raise Skip("no AMQP client in this image") from None
    tls = None
    if "tls" in account:
        login = pika.credentials.ExternalCredentials()
        tls = pika.SSLOptions(_tls(own=True), account["tls"]["server_name"])
    else:
        with open(account["password_file"]) as stream:
            login = pika.PlainCredentials(account["username"], stream.read().strip())
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            account["host"],
            account["port"],
            account["vhost"],
            login,
            ssl_options=tls,
            socket_timeout=3,
            blocked_connection_timeout=3,
        )
    )
    return card, connection, connection.channel(), pika


def _broker(name: str) -> Callable[[Callable[..., str]], None]:
    """Register an attempt on the broker, with a channel of its own."""

    def register(function: Callable[..., str]) -> None:
        def run(target: dict[str, Any]) -> str:
            card, connection, channel, pika = _channel(target)
            try:
                return function(target, card, channel, pika)
            except pika.exceptions.AMQPError as err:
                raise Refused(repr(err)) from None
            finally:
                with contextlib.suppress(Exception):
                    connection.close()

        attempt("broker", name)(run)

    return register


@_broker("read another's mailbox")
def read_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    mailbox = want(target, "peer", "mailbox")
    return f"got {channel.basic_get(mailbox)}"


@_broker("empty another's mailbox")
def purge_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_purge(want(target, "peer", "mailbox"))
    return "purged"


@_broker("delete another's mailbox")
def delete_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_delete(want(target, "peer", "mailbox"))
    return "deleted"


@_broker("send to another's mailbox past the links, by the default exchange")
def default_exchange(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.confirm_delivery()
    channel.basic_publish("", want(target, "peer", "mailbox"), b"probe", mandatory=True)
    return "accepted"


@_broker("send along a link that is not its own")
def foreign_link(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.confirm_delivery()
    channel.basic_publish(want(target, "peer", "link"), "", b"probe", mandatory=True)
    return "accepted"


@_broker("bind another's link to its own mailbox")
def bind_link(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_bind(card["mailbox"], want(target, "peer", "link"))
    return "bound"


@_broker("declare an exchange or a queue")
def declare(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_declare("probe", auto_delete=True)
    return "declared"


@_broker("send under a forged sender")
def forged_sender(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    peers = card.get("peers") or []
    if not peers:
        raise Skip("no link to send along")
    channel.confirm_delivery()
    channel.basic_publish(
        peers[0]["exchange"], "", b"probe", pika.BasicProperties(user_id="env.somebody-else"), mandatory=True
    )
    return "accepted"


@_broker("listen to the broker's own events and traces")
def broker_events(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    for exchange in ("amq.rabbitmq.event", "amq.rabbitmq.trace", "amq.topic"):
        with contextlib.suppress(Exception):
            channel.queue_bind(card["mailbox"], exchange, "#")
            return f"bound {exchange}"
    raise Refused("none can be bound")


def _tls(own: bool) -> Any:
    """Return a TLS context that accepts any broker, with this environment's own certificate or without one."""
    try:
        import ssl
    except ImportError:
        raise Refused("no TLS in this image, and the broker accepts only TLS") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if own:
        context.load_cert_chain("/run/netspace/identity.pem")
    return context


def _stream(own: bool) -> Any:
    """Return a connection to the broker: plain on port 5672 or, if that fails, TLS on port 5671."""
    try:
        plain = socket.create_connection(("127.0.0.1", 5672), timeout=PATIENCE * 10)
    except OSError:
        raw = socket.create_connection(("127.0.0.1", 5671), timeout=PATIENCE * 10)
        try:
            return _tls(own).wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
    return plain


def login(mechanism: str, response: bytes, own: bool = False) -> str:
    """Log in at the broker by a few bytes of AMQP 0-9-1; raise Refused if the login isn't accepted.

    :param own: whether to present this environment's own certificate.
    """
    try:
        return _login(mechanism, response, own)
    except OSError as err:
        raise Refused(f"{mechanism}: {err}") from None


def _login(mechanism: str, response: bytes, own: bool) -> str:
    with _stream(own) as broker:
        broker.sendall(b"AMQP\0\0\x09\x01")
        _frame(broker)  # connection.start
        method = struct.pack("=BB", 0, 10) + struct.pack("=BB", 0, 11) + b"\0\0\0\0"  # start-ok, no properties
        method += bytes([len(mechanism)]) + mechanism.encode() + struct.pack("!I", len(response)) + response
        method += b"\x05en_US"
        broker.sendall(struct.pack("!BHI", 1, 0, len(method)) + method + b"\xce")
        answer = _frame(broker)
    if answer[:4] == b"\0\x0a\0\x1e":  # connection.tune
        return "logged in"
    raise Refused(f"{mechanism}: not taken")


def _frame(stream: socket.socket) -> bytes:
    header = _exactly(stream, 7)
    size = min(struct.unpack_from("!I", header, 3)[0] + 1, 65536)
    return _exactly(stream, size)


def _exactly(stream: socket.socket, size: int) -> bytes:
    """Read exactly *size* bytes: TLS has no MSG_WAITALL."""
    found = b""
    while len(found) < size:
        part = stream.recv(size - len(found))
        if not part:
            raise Refused("the broker hung up")
        found += part
    return found


@attempt("broker", "log in as somebody else")
def other_account(target: dict[str, Any]) -> str:
    users = [
        "guest",
        "admin",
        "netspace",
        *([target["peer"]["account"]] if "account" in target.get("peer", {}) else []),
    ]
    problems = []
    for user in users:
        for password in (user, ""):
            for own in (False, os.path.exists("/run/netspace/identity.pem")):
                try:
                    return f"{login('PLAIN', f'{chr(0)}{user}{chr(0)}{password}'.encode(), own)} as {user}"
                except (Refused, OSError) as err:
                    problems.append(str(err))
    raise Refused("; ".join(sorted(set(problems))))


@attempt("broker", "log in without a name")
def anonymous(target: dict[str, Any]) -> str:
    with contextlib.suppress(Refused):
        return login("ANONYMOUS", b"anybody")
    with contextlib.suppress(Refused):
        return login("EXTERNAL", b"")
    return login("PLAIN", b"\0\0")


# -- time ------------------------------------------------------------------------------------------------
def _clock(name: str, *arguments: Any) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        # Set the present time, so that a success changes nothing.
        now = (ctypes.c_int64 * 2)(int(time.time()), 0)
        return f"returned {syscall(name, *(now if value is ... else value for value in arguments))}"

    return run


attempt("time", "set the clock (settimeofday)")(_clock("settimeofday", ..., None))
attempt("time", "set the clock (clock_settime)")(_clock("clock_settime", 0, ...))
attempt("time", "steer or read the clock's discipline (adjtimex)")(_clock("adjtimex", ctypes.create_string_buffer(256)))
attempt("time", "steer or read the clock's discipline (clock_adjtime)")(
    _clock("clock_adjtime", 0, ctypes.create_string_buffer(256))
)


@attempt("time", "make a time namespace by way of a user namespace")
def time_namespace(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        syscall("unshare", 0x80)
        return "unshared the time namespace"
    syscall("unshare", 0x10000080)
    return "unshared a user and a time namespace"


@attempt("time", "shift its clocks (timens_offsets)")
def offsets(target: dict[str, Any]) -> str:
    with open("/proc/self/timens_offsets", "w") as stream:
        stream.write("monotonic 86400 0")
    return "written"


@attempt("time", "reach the machine's real-time clock")
def hardware_clock(target: dict[str, Any]) -> str:
    for path in ("/dev/rtc", "/dev/rtc0", "/dev/ptp0", "/dev/hpet"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            return f"opened {path}"
    raise Refused("none is there")


# -- resources -----------------------------------------------------------------------------------------------
MOST = 2 * 1024**3  # the most bytes that an attempt may ask for


def limit(target: dict[str, Any], name: str, most: int = MOST) -> int:
    """Return a limit to exceed; raise Skip if it is unknown, or so high that an attempt would burden the host."""
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
    raise Refused("its user may write to no folder of the image")


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
            raise Refused("the kernel pretends success, and changes nothing")
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
        raise Refused("the kernel pretends success, and changes nothing")
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


# -- the program --------------------------------------------------------------------------------------------
def run(target: dict[str, Any]) -> list[dict[str, str]]:
    """Run all attempts, each in a process of its own, so that none can help or hinder the next."""
    return [
        {"name": name, "group": group, **isolated(function, target)}
        for group, name, function in sorted(ATTEMPTS, key=lambda entry: GROUPS.index(entry[0]))
    ]


def isolated(function: Attempt, target: dict[str, Any]) -> dict[str, str]:
    """Run one attempt in a child, for 15 seconds at most."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        # If memory runs out, let the kernel kill this process, not its parent.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
        os.write(writer, json.dumps(one(function, target)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    answer = b""
    deadline = time.monotonic() + 15
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(reader, 65536) if ready else b""
        if not chunk:
            break
        answer += chunk
    os.close(reader)
    if not answer:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not answer:
        return {"outcome": "refused", "detail": f"the attempt was ended ({os.waitstatus_to_exitcode(status)})"}
    result: dict[str, str] = json.loads(answer)
    return result


def one(function: Attempt, target: dict[str, Any]) -> dict[str, str]:
    try:
        return {"outcome": "succeeded", "detail": function(target)}
    except Skip as err:
        return {"outcome": "skipped", "detail": str(err)}
    except Refused as err:
        return {"outcome": "refused", "detail": str(err)}
    except OSError as err:
        return {"outcome": "refused", "detail": errno.errorcode.get(err.errno or 0, "") + f" {err}"}
    except Exception as err:
        # The system didn't refuse the attempt: the probe itself failed, and the row must show that.
        return {"outcome": "succeeded", "detail": f"the probe failed: {err!r}"}


def victim(target: dict[str, Any]) -> None:
    """Act as the peer: hold the targets of the attempts and answer connections, until this process is killed."""
    marker = target["marker"]
    with open("/tmp/victim", "w") as stream:
        stream.write(marker)
    with open("/dev/shm/victim", "w") as stream:
        stream.write(marker)
    memory = mmap.mmap(-1, 4096)
    memory[: len(marker)] = marker.encode()
    lock = open(target["locked"], "rb")  # noqa: SIM115 (held until the end)
    fcntl.flock(lock, fcntl.LOCK_EX)
    syscall("shmget", target["shm_key"], 4096, 0o1600)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind("\0" + target["abstract"])
    unix.listen()
    if socket.has_dualstack_ipv6():
        tcp = socket.create_server(("::", target["port"]), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    else:  # a kernel without IPv6
        tcp = socket.create_server(("0.0.0.0", target["port"]))  # noqa: S104 (in its own namespace)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname()[:2])
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([tcp, udp, unix], [], [], 0.1)
        with open(target["touched"], "rb"):
            pass
        for end in ready:
            if end is udp:
                _, sender = udp.recvfrom(64)
                udp.sendto(b"yes", sender)
            else:
                end.accept()[0].close()


def main() -> None:
    if sys.argv[1:2] == ["victim"]:
        victim(json.loads(sys.argv[2]))
    else:
        json.dump(run(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
