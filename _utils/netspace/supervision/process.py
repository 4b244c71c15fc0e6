"""Facts about processes from the kernel: their identity, state, and the service that they belong to.

This module reads ``/proc`` (proc(5)) and makes the few system calls that Python doesn't wrap. It starts nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterable
from typing import NamedTuple

from netspace.patterns import pattern

# Every process of a service has this variable, so that the processes that a program leaves
# behind (or moved to another session) are found when the service ends.
MARK = "NETSPACE_SERVICE"

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
_READ = os.O_RDONLY | os.O_CLOEXEC
_MOST = 16 * 1024  # the most bytes that are read from a file
# The kernel escapes a line feed in a process's name, so no name can look like one of these lines.
_SWITCHES = pattern(rb"^(?:non)?voluntary_ctxt_switches:\t(\d+)$", re.MULTILINE)
MOST_ASLEEP = 256  # the most processes and threads that asleep() looks at
PF_EXITING, PF_KTHREAD = 0x4, 0x200000  # of /proc/PID/stat's flags


class Stat(NamedTuple):
    """A part of ``/proc/PID/stat``.

    :param state: a letter (``Z``: zombie).
    :param ticks: start time of the process, in clock ticks since boot.
    :param bare: whether the environment of the process can't be read: it is a kernel thread, this process may not trace
        it, or it has no environment. False while the process is in execve(2), because the answer isn't known then.
    """

    state: str
    ppid: int
    session: int
    ticks: int
    bare: bool


_GONE = Stat("X", 0, 0, 0, True)


def stat(pid: int) -> Stat | None:
    """Return the kernel's data on *pid*; None if there is no such process.

    Source: proc_pid_stat(5), ``linux/sched.h``.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(fd, 4096).rpartition(b")")[2].split()  # one read returns the whole file
        finally:
            os.close(fd)
        flags, code, start, end = int(words[6]), int(words[23]), int(words[47]), int(words[48])
        # As the program's address, the kernel shows 1 if this process may not see it, and 0 during execve.
        bare = bool(flags & PF_KTHREAD) or code == 1 or (code != 0 and start == end)
        return Stat(words[0].decode(), int(words[1]), int(words[3]), int(words[19]), bare)
    except (OSError, IndexError, ValueError):
        return None


def state(pid: int, processes: int | None = None) -> tuple[str, int]:
    """Return the state and the start time of *pid*, as in :class:`Stat`; the state is empty if there is no process.

    :param processes: a descriptor of ``/proc``, which makes many calls cheaper.
    """
    try:
        words = _after_name(pid, processes).split(None, 20)
        return words[0].decode(), int(words[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def letter(pid: int, processes: int | None = None) -> str:
    """Return the state of *pid* alone, as :func:`state` does."""
    try:
        return _after_name(pid, processes)[1:2].decode()
    except (OSError, ValueError):
        return ""


def _after_name(pid: int, processes: int | None) -> bytes:
    """Return the part of ``/proc/PID/stat`` after the process's name, which may contain any byte."""
    fd = os.open(f"{pid}/stat" if processes is not None else f"/proc/{pid}/stat", _READ, dir_fd=processes)
    try:
        return os.read(fd, 4096).rpartition(b")")[2]
    finally:
        os.close(fd)


def alive(pid: int, ticks: int) -> bool:
    """Return whether the process *pid* that started at *ticks* still runs. A zombie doesn't run."""
    there = stat(pid) if pid > 0 else None
    return there is not None and there.ticks == ticks and there.state not in "ZX"


def dying(pid: int) -> bool:
    """Return whether *pid* has ended, is exiting, or has a pending SIGKILL."""
    lines = status(pid)
    try:
        flags = int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[6])
        pending = [int(lines[name], 16) for name in ("SigPnd", "ShdPnd")]
    except (IndexError, KeyError, ValueError):
        return True
    return bool(flags & PF_EXITING or any(mask >> signal.SIGKILL - 1 & 1 for mask in pending))


def status(pid: int) -> dict[str, str]:
    """Return the lines of ``/proc/PID/status``, by their names; empty if there is no such process.

    Reading never waits for a lock that the process may hold. A process can't forge a line by its own name, since the
    kernel escapes line feeds in names.
    """
    lines = _read(f"/proc/{pid}/status").decode(errors="replace").split("\n")  # as the kernel ends lines
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def first_child(pid: int) -> int:
    """Return the oldest child of *pid*; 0 if *pid* has no child, or the kernel doesn't list children.

    The kernel lists children in the order in which they became children of *pid*.
    """
    words = _read(f"/proc/{pid}/task/{pid}/children").split()
    return int(words[0]) if words else 0


def _read(path: str) -> bytes:
    """Return at most ``_MOST`` bytes of a file in /proc, by one read; empty if the file can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST)
    except OSError:  # it has ended meanwhile
        return b""
    finally:
        os.close(fd)


def frozen(pid: int) -> bool:
    """Return whether a signal (SIGSTOP) has stopped *pid*. Such a process waits for SIGCONT."""
    there = stat(pid) if pid > 0 else None
    return there is not None and there.state == "T"


def asleep(pid: int, cgroup: str) -> int | None:
    """Return the number of context switches of all threads of *pid* and its cgroup; None if a thread is awake.

    If two calls return the same number, no thread has run between the calls. A thread counts as awake if it waits for a
    disk or for a processor. So if two calls return the same number, the program waits for something else.

    :param cgroup: the cgroup of the program and all its children. If it can't be read, only *pid* counts.
    """
    pids = members(cgroup) or [str(pid)]
    if len(pids) > MOST_ASLEEP:
        return None
    switches = threads = 0
    for member in pids:
        try:
            tasks = os.listdir(f"/proc/{member}/task")
        except OSError:  # it has ended meanwhile
            return None
        threads += len(tasks)
        if threads > MOST_ASLEEP:
            return None
        for task in tasks:
            text = _read(f"/proc/{member}/task/{task}/status")
            if b"\nState:\tS" not in text:
                return None
            counts = _SWITCHES.findall(text)
            if len(counts) != 2:
                return None
            switches += sum(map(int, counts))
    return switches


def members(cgroup: str) -> list[str]:
    """Return the PIDs in a control group, in any hierarchy; empty if the group doesn't exist."""
    for root in ("", "/memory", "/pids", "/cpu"):
        if found := _read(f"/sys/fs/cgroup{root}{cgroup}/cgroup.procs").split():
            return [pid.decode() for pid in found]
    return []


def thaw(pid: int) -> None:
    """Continue *pid* (SIGCONT) if it is frozen."""
    if frozen(pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def contained(pid: int) -> bool:
    """Return whether *pid* is in a PID namespace other than this process's.

    The main process of a container is the first in its PID namespace, so all its children end with it.
    """
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def within(pid: int, cgroup: str) -> bool:
    """Return whether *pid* is in *cgroup* or below it, in any hierarchy (cgroups(7), /proc/PID/cgroup)."""
    try:
        with open(f"/proc/{pid}/cgroup") as stream:
            paths = [line.rstrip("\n").split(":", 2)[2] for line in stream]
    except (OSError, IndexError):
        return False
    return any(path == cgroup or path.startswith(f"{cgroup}/") for path in paths)


class LeftOver(NamedTuple):
    """The result of one pass over ``/proc``.

    :param found: ``{pid: ticks}`` of the processes that were searched for.
    :param complete: False if the pass may have missed such processes: a process was in execve(2), where it has no
        environment yet, or a process ended during the pass and may have forked another one. The next pass finds them.
    """

    found: dict[int, int]
    complete: bool


def left_over(marks: Iterable[str], sessions: Iterable[int]) -> LeftOver:
    """Find all processes that have one of *marks* or are in one of *sessions*, in one pass over ``/proc``.

    Zombies and this process are left out.

    :param sessions: sessions whose leaders have ended. A session is left out if a live process has its leader's PID,
        because that PID was reused for a new and unrelated session.
    """
    wanted = {f"{MARK}={mark}".encode() for mark in marks}
    ids = {session for session in sessions if session > 0 and (stat(session) or _GONE).state in "ZX"}
    found: dict[int, int] = {}
    complete = True
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        there = stat(int(entry))
        if there is None or there.state in "ZX":
            complete = complete and there is not None and there.ppid != os.getpid()
        elif there.session in ids:
            found[int(entry)] = there.ticks
        elif wanted:
            environment = _environment(entry)
            if not wanted.isdisjoint(environment):
                found[int(entry)] = there.ticks
            elif not any(environment) and not there.bare:
                complete = False
    return LeftOver(found, complete)


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return stream.read().split(b"\0")
    except OSError:
        return []


def weigh(score: int) -> None:
    """Set this process's ``oom_score_adj`` (-1000 to 1000), by which the OOM killer chooses. Children inherit it.

    If the kernel doesn't permit *score*, set 0 instead. In a container it usually permits no negative score.
    """
    for wanted in (score, 0):
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write(str(wanted))
            stream.flush()
            return


def prctl(option: int) -> None:
    """Set the *option* of prctl(2) to 1 for this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")
