"""Reader of an environment's refused system calls and files, as the BPF program has counted them. Changes nothing."""

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
_UNCOUNTED = "the program that counts them isn't in the kernel; apply again, and the result has the reason"

By = Literal["profile", "kernel", "rest"]


class Refusal(NamedTuple):
    """Calls of one kind that were refused, with the number of times.

    :param by: ``profile``: the environment's profile of system calls refused them, or the built-in profile ``strict``
        with which the program started. ``kernel``: the kernel's own checks did, such as a file's permissions. ``rest``:
        calls of any kind that were counted together, because the map was full.
    :param call: the system call's name; empty for ``rest``.
    :param arguments: the values of the arguments that profiles compare; 0 for the other arguments.
    :param path: the path as the program gave it; empty if the call has none.
    :param answer: the errno that the program got.
    :param first: the time of the first refusal, in seconds since the epoch.
    :param last: the time of the last refusal, in seconds since the epoch.
    :param has_path: whether the call takes a path; true even if the path couldn't be read.
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
    """The refused calls of one environment.

    :param found: the refusals; the one that began first comes first.
    :param unseen: why nothing is recorded; empty if refusals are recorded.
    """

    found: list[Refusal]
    unseen: str


def refusals(layout: Layout, name: str, record: Record) -> Refusals:
    """Return the refused calls of an environment.

    :param record: the environment's record.
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
    """Return whether a built-in profile refuses this call with the same errno that the program got."""
    return _refuses(profile, one.call, one)


def _refuses(profile: str, call: str, one: Refusal | program.Seen) -> bool:
    return seccomp.answer(recording.built_in(profile), call, one.arguments) == ("ERRNO", one.answer)


def _by(record: Record, call: str, seen: program.Seen) -> By | None:
    """Return whether a profile or the kernel refused a call; None if neither did.

    A call can fail without a refusal: the kernel doesn't have it, or the firewall dropped its packet. If the present
    profile permits the call, the kernel refused it. If the present profile refuses the call with another errno than the
    program got, the function also compares the profile ``strict``, with which the program may have started.
    """
    answer = seccomp.answer(recording.rules(record), call, seen.arguments)
    if answer == ("ERRNO", seen.answer) or (not answer.passes and _refuses("strict", call, seen)):
        return "profile"
    if seen.answer == errno.ENOSYS or call in _PACKETS:
        return None
    return "kernel"
