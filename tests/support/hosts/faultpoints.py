"""Fault points: system calls by which a process changes something. Count them, kill a run at one, or make one fail.

The product has no hooks for this. A forked child of the test does the work under ptrace(2) (with its threads, but
without the programs that it starts). Before each call that changes something, the tracer may kill the child, or make
the call fail. A point has a name, such as ``rename .../applied.json`` (without parts that differ from run to run), and
the number of earlier calls with this name.

A run takes some tens of milliseconds, because the child is forked from an interpreter that has imported everything. The
module works only on x86-64, whose names of registers and calls it uses. It has no code for netspace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import platform
import re
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SUPPORTED = platform.machine() == "x86_64"
PATIENCE = 120

_TRACEME, _POKEUSER, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
_SYSGOOD, _CLONE, _EXITKILL = 0x1, 0x8, 0x100000
_WALL = 0x40000000
_RAX, _ORIG_RAX = 10 * 8, 15 * 8
_CLONE_THREAD = 0x10000
_STARTS = frozenset({"clone", "fork", "vfork", "clone3"})

# Those that change something, by number: the name, and which arguments are paths.
# https://github.com/torvalds/linux/blob/master/arch/x86/entry/syscalls/syscall_64.tbl
_CALLS: dict[int, tuple[str, tuple[int, ...]]] = {
    1: ("write", ()), 18: ("pwrite64", ()), 20: ("writev", ()), 40: ("sendfile", ()), 326: ("copy_file_range", ()),
    2: ("open", (0,)), 257: ("openat", (1,)), 42: ("connect", ()), 44: ("sendto", ()), 46: ("sendmsg", ()),
    49: ("bind", ()), 56: ("clone", ()), 57: ("fork", ()), 58: ("vfork", ()), 435: ("clone3", ()),
    62: ("kill", ()), 234: ("tgkill", ()), 424: ("pidfd_send_signal", ()), 73: ("flock", ()),
    74: ("fsync", ()), 75: ("fdatasync", ()), 162: ("sync", ()),
    76: ("truncate", (0,)), 77: ("ftruncate", ()), 82: ("rename", (0, 1)), 264: ("renameat", (1, 3)),
    316: ("renameat2", (1, 3)), 83: ("mkdir", (0,)), 258: ("mkdirat", (1,)), 84: ("rmdir", (0,)),
    86: ("link", (0, 1)), 265: ("linkat", (1, 3)), 87: ("unlink", (0,)), 263: ("unlinkat", (1,)),
    88: ("symlink", (0, 1)), 266: ("symlinkat", (0, 2)), 133: ("mknod", (0,)), 259: ("mknodat", (1,)),
    90: ("chmod", (0,)), 91: ("fchmod", ()), 268: ("fchmodat", (1,)), 92: ("chown", (0,)), 93: ("fchown", ()),
    94: ("lchown", (0,)), 260: ("fchownat", (1,)), 280: ("utimensat", (1,)), 188: ("setxattr", (0,)),
    165: ("mount", (0, 1)), 166: ("umount2", (0,)), 428: ("open_tree", (1,)), 429: ("move_mount", (1, 3)),
    442: ("mount_setattr", (1,)), 272: ("unshare", ()), 308: ("setns", ()),
}  # fmt: skip
_ON_DESCRIPTOR = frozenset({1, 18, 20, 40, 326, 44, 46, 74, 75, 77, 91, 93, 73, 308, 42, 49})
_WRITES = os.O_CREAT | os.O_TRUNC
_SOCKET = 41

# What differs between two runs of the same: process ids, random names, digests, times.
_VARIES = (
    (re.compile(r"sha256-[0-9a-f]{64}"), "sha256-H"),
    (re.compile(r"[0-9a-f]{16,}"), "H"),
    (re.compile(r"(building-|exec-|tmp)[a-z0-9_]{8}"), r"\1*"),
    (re.compile(r"\d{2,}"), "#"),
    (re.compile(r"(/lib/)\.?H(\.#)?/.*"), r"\1*"),
)


def _plain(text: str) -> str:
    for pattern, replacement in _VARIES:
        text = pattern.sub(replacement, text)
    return text


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_information = ctypes.create_string_buffer(88)


class Point(NamedTuple):
    """A moment in a run: just before the *nth* call (from 0) with this name.

    For ``started ...``: just after the call.
    """

    what: str
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.what} [{self.nth}]"


@dataclass
class Run:
    """The result of a traced run.

    :param points: all points that were passed, in order.
    :param changing: the points whose call did not fail.
    :param reached: whether the run reached the requested point.
    :param value: the work's return value, if the work ended normally.
    :param error: the traceback of the exception that ended the work.
    """

    points: list[Point] = field(default_factory=list)
    changing: list[Point] = field(default_factory=list)
    reached: bool = False
    value: Any = None
    error: str = ""


def run(work: Callable[[], Any], at: Point | None = None, fail: int = 0, traced: bool = True) -> Run:
    """Do *work* in a forked child. At the point *at*, kill the child, or with *fail* make the call fail.

    :param fail: the errno with which the call at *at* fails.
    :param traced: False: count no points, which makes the run as fast as a plain fork.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _child(work, write, traced)
    os.close(write)
    done = Run()
    ended = True
    try:
        with _bounded(done):
            if traced:
                ended = _trace(pid, done, at, fail)
            with open(read, "rb") as stream:
                raw = stream.read()
            if not traced:
                os.waitpid(pid, 0)
    except BaseException:
        _kill(pid)
        raise
    if ended and not raw and not (done.reached and not fail):
        raise AssertionError("the work ended without a result")
    if raw:
        done.value, done.error = pickle.loads(raw)
    return done


@contextlib.contextmanager
def _bounded(done: Run) -> Iterator[None]:
    """Fail if the work takes too long."""

    def ring(*_: object) -> None:
        raise AssertionError(f"not done in {PATIENCE} s; last passed: {', '.join(map(str, done.points[-3:]))}")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WALL)


def _child(work: Callable[[], Any], report: int, traced: bool) -> None:
    try:
        if traced:
            _libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            outcome = (work(), "")
        except Exception:
            outcome = (None, traceback.format_exc())
        raw = pickle.dumps(outcome)
        while raw:
            raw = raw[os.write(report, raw) :]
    finally:
        os._exit(0)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    return int(_libc.ptrace(request, pid, address, data))


def _trace(leader: int, done: Run, at: Point | None, fail: int) -> bool:
    """Follow all threads of *leader* until it ends; return whether it ended by itself."""
    os.waitpid(leader, _WALL)
    _ptrace(_SETOPTIONS, leader, 0, _SYSGOOD | _CLONE | _EXITKILL)
    _ptrace(_SYSCALL, leader)
    counts: Counter[str] = Counter()
    seen = _Seen(leader)
    pending: dict[int, Point] = {}
    failing: set[int] = set()

    def pass_by(what: str) -> Point:
        point = Point(what, counts[what])
        counts[what] += 1
        done.points.append(point)
        done.reached = done.reached or point == at
        return point

    while True:
        # Any child: the threads that come and go are children too. (Orphans that came to us are reaped by that.)
        tid, status = os.waitpid(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if tid == leader:
                return os.WIFEXITED(status)
            continue
        number = os.WSTOPSIG(status)
        deliver = 0
        if number == signal.SIGTRAP | 0x80:
            entry, result = _call(tid)
            point = None
            if entry is not None:
                what = seen.name(tid, *entry)
                if what:
                    point = pending[tid] = pass_by(what)
            elif (former := pending.pop(tid, None)) is not None and tid not in failing and result >= 0:
                done.changing.append(former)
                if former.what in _STARTS:
                    point = pass_by(f"started {seen.program(result)}")
                    done.changing.append(point)
            if tid in failing and entry is None:
                failing.discard(tid)
                _ptrace(_POKEUSER, tid, _RAX, -fail)
            if point is not None and point == at:
                if not fail:
                    os.kill(leader, signal.SIGKILL)
                    continue
                _ptrace(_POKEUSER, tid, _ORIG_RAX, -1)
                failing.add(tid)
        elif number == signal.SIGTRAP and status >> 16:
            pass  # a thread came to be
        elif number == signal.SIGSTOP:
            pass  # and stops at its start
        else:
            deliver = number
        _ptrace(_SYSCALL, tid, 0, deliver)


def _call(tid: int) -> tuple[tuple[int, tuple[int, ...]] | None, int]:
    """Return the number and arguments of the call that *tid* enters.

    When *tid* leaves a call, return None and the result.
    """
    _ptrace(_GET_SYSCALL_INFO, tid, len(_information), ctypes.addressof(_information))
    if _information.raw[0] != 1:
        return None, struct.unpack_from("<q", _information.raw, 24)[0]
    number, *arguments = struct.unpack_from("<7Q", _information.raw, 24)
    return (number, tuple(arguments)), 0


class _Seen:
    """Names for calls, made from the data that their arguments point to."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.memory = os.open(f"/proc/{leader}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.memory)

    def name(self, tid: int, number: int, arguments: tuple[int, ...]) -> str:
        """Return a name for the call that is about to be made; empty if the call changes nothing."""
        found = _CALLS.get(number)
        if found is None:
            return ""
        call, paths = found
        if call in ("open", "openat"):
            flags = arguments[2] if call == "openat" else arguments[1]
            if not flags & _WRITES:
                return ""
        if call in ("clone", "clone3"):
            flags = arguments[0] if call == "clone" else struct.unpack("<Q", self._read(arguments[0], 8))[0]
            if flags & _CLONE_THREAD:
                return ""
        text = call
        if number in _ON_DESCRIPTOR:
            text += f" {self._descriptor(tid, arguments[0])}"
            if call == "sendto":
                text += self._sent(arguments[1], arguments[2])
            elif call in ("connect", "bind"):
                text += self._address(arguments[1], arguments[2])
        for place in paths:
            path = self._text(arguments[place])
            if not path.startswith("/") and place and call.endswith(("at", "at2", "move_mount")):
                path = f"{self._descriptor(tid, arguments[place - 1])}/{path}"
            text += f" {path}"
        return _plain(text)

    def program(self, pid: int) -> str:
        """Return the program that the child *pid* now runs."""
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                words = stream.read().decode(errors="replace").split("\0")
        except OSError:
            return "?"
        return _plain(" ".join([os.path.basename(words[0]), *words[1:3]])) if words[0] else "what has ended"

    def _read(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self.memory, size, address)
        except OSError:
            return b""

    def _text(self, address: int) -> str:
        return self._read(address, 256).partition(b"\0")[0].decode(errors="replace")

    def _descriptor(self, tid: int, number: int) -> str:
        number &= 0xFFFFFFFF
        if number > 1 << 30:
            return "."
        try:
            return re.sub(r":\[\d+\]| \(deleted\)", "", os.readlink(f"/proc/{tid}/fd/{number}"))
        except OSError:
            return "?"

    def _sent(self, address: int, size: int) -> str:
        """Return the first line of an HTTP message, or the types of a netlink message."""
        raw = self._read(address, min(size, 65536))
        line = raw.split(b"\r\n", 1)[0]
        if line.endswith(b"HTTP/1.1"):
            return " " + line[:-9].decode(errors="replace").split("?")[0]
        kinds = []
        while len(raw) >= 16:
            length, kind = struct.unpack_from("<IH", raw)
            if not 16 <= length <= len(raw):
                break
            kinds.append(kind)
            raw = raw[(length + 3) & ~3 :]
        # Digits alone are taken for what varies.
        return " netlink:" + ",".join(f"t{kind:x}" for kind in dict.fromkeys(kinds)) if kinds else ""

    def _address(self, address: int, size: int) -> str:
        raw = self._read(address, size)
        family = struct.unpack_from("<H", raw)[0] if len(raw) >= 2 else 0
        if family == 1:
            return " " + raw[2:].partition(b"\0")[0].decode(errors="replace")
        return f" family{family:x}"
