"""Facts about system calls: numbers on this machine, path arguments, and the arguments that profiles compare.

The numbers come from libseccomp, which also makes the filters.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from netspace.environment.container import seccomp
from netspace.environment.refusals import program

# Index of the argument that is a path. What is missing here is recorded without one.
PATHS: Mapping[int, str] = {
    0: "open creat stat lstat statfs chdir mkdir rmdir unlink link rename readlink chmod chown lchown truncate utime "
    "utimes getxattr lgetxattr setxattr lsetxattr removexattr lremovexattr listxattr llistxattr execve",
    1: "openat openat2 newfstatat statx mkdirat unlinkat renameat renameat2 linkat symlink readlinkat fchmodat "
    "fchmodat2 fchownat futimesat utimensat execveat inotify_add_watch",
    2: "symlinkat",
}
# These only ask whether something would be refused.
QUESTIONS = "access faccessat faccessat2"


@functools.cache
def _library() -> Any:
    found = ctypes.CDLL("libseccomp.so.2")  # crun and runc need it, too
    found.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    found.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    return found


def number(name: str) -> int:
    """Return the number of a system call on this machine; negative if the machine doesn't have the call.

    :raises OSError: when this host has no libseccomp.
    """
    return int(_library().seccomp_syscall_resolve_name(name.encode()))


@functools.cache
def name(number: int) -> str:
    """Return the name of a system call; for an unknown number, a text such as ``call 999``.

    :raises OSError: when this host has no libseccomp.
    """
    text = _library().seccomp_syscall_resolve_num_arch(0, number)  # 0: this machine's own calls
    if not text:
        return f"call {number}"
    found = ctypes.string_at(text).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return found


def compared(rules: Mapping[str, Any]) -> dict[str, int]:
    """Return, by the call's name, a bit mask of the arguments that a profile compares."""
    found: dict[str, int] = {}
    for rule in rules.get("syscalls") or ():
        bits = functools.reduce(lambda bits, one: bits | 1 << one["index"], rule.get("args") or (), 0)
        if bits:
            for one in rule["names"]:
                found[one] = found.get(one, 0) | bits
    return found


def without_notice() -> set[str]:
    """Return the calls that are not recorded.

    These are the calls that no built-in profile permits and that fail with ENOSYS. Programs can do without them, and C
    libraries try some of them at each start of a thread.
    """
    answers = seccomp.profile("standard")
    absent = {one for one in seccomp.ABSENT.split() if not seccomp.answer(answers, one).passes}
    return {*QUESTIONS.split(), *absent}


def looks(profiles: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Yield pairs: a call's number, and the encoded selection of what to record of it (:func:`program.look`).

    Of calls that are not yielded, only the number and the answer are recorded.

    :param profiles: the profiles whose compared arguments are recorded.
    """
    bits: dict[str, int] = {}
    for rules in profiles:
        for one, more in compared(rules).items():
            bits[one] = bits.get(one, 0) | more
    paths = {one: index for index, names in PATHS.items() for one in names.split()}
    left_out = without_notice()
    for one in sorted({*bits, *paths, *left_out}):
        place = number(one)
        if 0 <= place < program.CALLS:
            yield place, program.look(bits.get(one, 0), paths.get(one), left_out=one in left_out)
