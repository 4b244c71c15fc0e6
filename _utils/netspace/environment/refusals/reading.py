"""The refused system calls and files of one environment, as the kernel has counted them. Changes nothing."""

from __future__ import annotations

import errno
import time
from typing import Literal, NamedTuple

from netspace.bpf import library as bpf
from netspace.environment.container import seccomp
from netspace.environment.record import Record
from netspace.environment.refusals import calls, program, recording
from netspace.layout import Layout

# The packet filter answers these with EPERM when it drops a packet, and counts the packet itself.
_PACKETS = frozenset({"connect", "sendto", "sendmsg", "sendmmsg"})
_UNCOUNTED = "nothing counts them in the kernel; apply again, which tells why"

By = Literal["profile", "kernel", "rest"]


class Refusal(NamedTuple):
    """Calls of one kind that were refused.

    :param by: ``profile``: the profile of system calls that is applied, or that ``strict`` is. ``kernel``: the
        kernel's own checks, such as a file's permissions. ``rest``: calls that the full map couldn't take.
    :param call: its name; empty for ``rest``.
    :param arguments: the arguments that profiles compare; the others are 0.
    :param path: as the program gave it; empty: the call has none.
    :param answer: the error that the program got.
    :param first: the time of the first, in seconds since the epoch.
    :param last: the time of the last.
    :param has_path: whether it is a call with a path, also if that couldn't be read.
    """

    by: By
    call: str
    arguments: tuple[int, ...]
    path: str
    answer: int
    times: int
    first: float
    last: float
    has_path: bool = False


class Refusals(NamedTuple):
    """The refused calls of one environment, as far as they are known.

    :param found: the oldest first.
    :param unseen: why nothing is recorded; empty if it is.
    """

    found: list[Refusal]
    unseen: str


def refusals(layout: Layout, name: str, record: Record) -> Refusals:
    """Return the refused calls of an environment.

    :param record: its record.
    """
    if not record.spec.audit:
        return Refusals([], "audit isn't true")
    if not recording.recordable(record):
        return Refusals([], "another kernel answers its system calls")
    found = []
    try:
        if not recording.attached(layout):
            return Refusals([], _UNCOUNTED)
        for which in recording.MAPS:
            with bpf.opened(recording.kept(layout, which, name, record)) as own:
                found += _counted(own, record, which == "files")
    except OSError as err:
        if err.errno == errno.ENOENT:
            return Refusals([], _UNCOUNTED)
        return Refusals([], f"the kernel's counts can't be read: {err}")
    return Refusals(sorted(found, key=lambda one: (one.first, one.call, one.path)), "")


def _counted(own: int, record: Record, with_path: bool) -> list[Refusal]:
    ended = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)  # CLOCK_BOOTTIME's zero
    found = []
    for key in bpf.keys(own, program.KEY, program.MOST):
        value = bpf.value(own, key, program.VALUE)
        if value is None:
            continue
        seen = program.seen(key, value)
        if not seen.times:
            continue
        times = seen.times, ended + seen.first / 1e9, ended + seen.last / 1e9
        if seen.call < 0:
            found.append(Refusal("rest", "", (), "", 0, *times, with_path))
            continue
        call = calls.name(seen.call)
        by = _by(record, call, seen)
        if by is not None:
            path = seen.path.decode("utf-8", "backslashreplace")
            found.append(Refusal(by, call, seen.arguments, path, seen.answer, *times, with_path))
    return found


def refuses(profile: str, one: Refusal) -> bool:
    """Return whether a built-in profile answers a call with the error that the program got."""
    return _refuses(profile, one.call, one)


def _refuses(profile: str, call: str, one: Refusal | program.Seen) -> bool:
    return seccomp.answer(recording.built_in(profile), call, one.arguments) == ("ERRNO", one.answer)


def _by(record: Record, call: str, seen: program.Seen) -> By | None:
    """Return who refused a call; None: nobody did, the kernel just doesn't have it, or a packet was dropped.

    The program may still run with an earlier profile. So ask ``strict``, too, unless the present one lets the call
    pass: then it may be the kernel that refuses.
    """
    answer = seccomp.answer(recording.rules(record), call, seen.arguments)
    if answer == ("ERRNO", seen.answer) or (not answer.passes and _refuses("strict", call, seen)):
        return "profile"
    if seen.answer == errno.ENOSYS or call in _PACKETS:
        return None
    return "kernel"
