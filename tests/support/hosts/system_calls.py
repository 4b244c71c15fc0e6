"""Changes to a host by a process and its children, found in their system calls (strace). Reads don't count."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Changes a file, a folder, a mount, another process or the kernel, whatever its arguments.
CHANGING = (
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "link", "linkat"),
    *("symlink", "symlinkat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown"),
    *("lchown", "fchownat", "truncate", "ftruncate", "fallocate", "utime", "utimes", "utimensat", "futimesat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "sendfile", "splice"),
    *("copy_file_range", "fsync", "fdatasync", "sync", "syncfs"),
    *("mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "mount_setattr", "pivot_root"),
    *("kill", "tkill", "tgkill", "pidfd_send_signal", "sethostname", "bpf", "unshare", "connect"),
)
# Changes something or not, depending on the arguments.
JUDGED = (
    *("open", "openat", "openat2", "creat", "write", "pwrite64", "writev", "pwritev", "pwritev2"),
    *("sendto", "sendmsg", "sendmmsg"),
)
STARTING = ("execve", "execveat", "fork", "vfork", "clone", "clone3")

_LINE = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?: resumed>)?\(?(.*)$")
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")
_PATH = re.compile(r'"([^"]*)"')
_TYPE = re.compile(r"nlmsg_type=(0x[0-9a-f]+|[^,} ]+)")
# Netlink messages that only ask. By number too: strace can't tell which protocol a socket in another
# network namespace speaks, and then knows no names.
ASKING = {
    "0x12": "RTM_GETLINK",
    "0x16": "RTM_GETADDR",
    "0x1a": "RTM_GETROUTE",
    "0x26": "RTM_GETQDISC",
    "0x52": "RTM_GETNETCONF",
    "0x5a": "RTM_GETNSID",
    "0xa10": "NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN",
}
_ASKING = {*ASKING, *ASKING.values(), "0"}  # 0: the padding of what iproute2 asks


@dataclass
class Calls:
    """System calls of a process and its children.

    :param changes: system calls that change something, as strace shows them.
    :param opened: paths that were opened for writing (also in *changes*).
    :param asked: types of netlink messages that are queries.
    :param started: programs that were executed, including the traced one.
    :param forks: how often a process (not a thread) was started.
    """

    changes: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    forks: int = 0


def of(command: Sequence[str], trace: Path) -> Calls:
    """Run *command*, which must succeed; return its calls."""
    watched = ",".join((*CHANGING, *JUDGED, *STARTING))
    options = [
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-y",
        "-s",
        "256",
        "-e",
        "signal=none",
        "-e",
        f"trace=?{watched.replace(',', ',?')}",
    ]
    done = subprocess.run(
        ["strace", *options, "-o", str(trace), *command], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return judged(trace.read_text(errors="replace"))


def judged(text: str) -> Calls:
    """Return the calls in strace's output."""
    calls = Calls()
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or line.rstrip().endswith("= -1 ENOENT (No such file or directory)"):
            continue
        name, rest = match[1], match[2]
        if name in STARTING:
            if name.startswith("exec"):
                calls.started += _PATH.findall(rest)[:1]
            elif "CLONE_THREAD" not in rest and " resumed>" not in line:
                calls.forks += 1
        elif name in ("open", "openat", "openat2", "creat"):
            if name == "creat" or _WRITES.search(rest):
                path = next(iter(_PATH.findall(rest)), rest)
                calls.opened.append(path)
                calls.changes.append(line)
        elif name.startswith(("write", "pwrite")):
            if not re.match(r"[12]<|\d+<(pipe:|anon_inode:)", rest):
                calls.changes.append(line)
        elif name.startswith("send"):
            types = set(_TYPE.findall(rest))
            calls.asked += [ASKING.get(one, one) for one in types & _ASKING]
            if not types or types - _ASKING:
                calls.changes.append(line)
        elif name in CHANGING:
            calls.changes.append(line)
    return calls
