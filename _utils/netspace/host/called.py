"""System calls and files that were refused to an audited environment, each with the setting that would permit it.

This module changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from netspace.layout import Layout
from netspace.spec.suggest import Refused, Setting
from netspace.text import one_word

if TYPE_CHECKING:
    from netspace.environment.record import Record
    from netspace.environment.refusals.reading import Refusal

# Folders that netspace mounts read-only in each environment, whatever is declared.
_NEVER_WRITABLE = ("/proc", "/sys", "/run/netspace")
_OWN = "no built-in profile has it; only a profile of your own (seccomp: file:/...) could"
_OPERATORS = "your own profile refuses it; permit it there"
_EARLIER = "the profile permits it now; an earlier one refused it, or the kernel does"
_MOUNT = "its mount is always read-only, or was read-only at that time"
_FULL = "too many different refusals to record each one"


def refused(layout: Layout, name: str, record: Record) -> tuple[list[Refused], str]:
    """Return the calls and files that were refused to an environment, and why none are recorded (empty if they are).

    :param record: the environment's record.
    """
    from netspace.environment.refusals import reading

    known = reading.refusals(layout, name, record)
    return _merged(_told(one, record) for one in known.found), known.unseen


def _told(one: Refusal, record: Record) -> Refused:
    from netspace.environment.refusals import reading

    times = one.times, one.first, one.last
    if one.by == "rest":
        return Refused("files" if one.has_path else "system calls", "others", *times, why=_FULL)
    if one.by == "profile":
        return _call(one, record, Refused("system calls", _spoken(one), *times))
    if not one.has_path:
        if reading.refuses("strict", one):
            return Refused("system calls", _spoken(one), *times, why=_EARLIER)
        why = f"the kernel refuses it ({os.strerror(one.answer)}), whatever the profile"
        return Refused("system calls", one.call, *times, why=why)
    return _file(one, record, Refused("files", f"{one.call} {_quoted(one.path)}: {os.strerror(one.answer)}", *times))


def _quoted(path: str) -> str:
    """Return a path as one word of ASCII.

    A program chooses the path, so it could contain line breaks that feign another row of a table, or letters that look
    like other letters, take two columns or are written from right to left.
    """
    return one_word(path)


def _spoken(one: Refusal) -> str:
    """Return a system call as text, without trailing arguments that are 0."""
    used = max((index for index, value in enumerate(one.arguments, 1) if value), default=0)
    return f"{one.call}({', '.join(_number(value) for value in one.arguments[:used])})" if used else one.call


def _number(value: int) -> str:
    return str(value) if value < 1000 else hex(value)


def _call(one: Refusal, record: Record, told: Refused) -> Refused:
    """Complete *told*, a system call that the profile refused: add the built-in profile that would permit it.

    If no built-in profile would permit the call, add the reason instead.
    """
    from netspace.environment.container import seccomp
    from netspace.environment.refusals import recording

    if record.profile is not None:
        return told._replace(why=_OPERATORS)
    if seccomp.answer(recording.built_in("standard"), one.call, one.arguments).passes:
        opened = ", ".join(seccomp.STANDARD)
        return told._replace(part=Setting("seccomp", "standard", f"it also permits these dangerous calls: {opened}"))
    refusing = (its.why for its in seccomp.NEVER.values() if one.call in its.calls.split())
    return told._replace(why=next(refusing, _OWN))


def _file(one: Refusal, record: Record, told: Refused) -> Refused:
    """Complete *told*, a refused file: add the setting that would permit the access, or the reason why none would."""
    import errno

    if one.answer != errno.EROFS:
        return told._replace(why="its owner and mode, which come with the image or the volume, refuse it to this user")
    path = PurePosixPath("/" + os.path.normpath(one.path).lstrip("/"))
    if any(path.is_relative_to(folder) for folder in _NEVER_WRITABLE):
        return told._replace(why="netspace mounts this folder read-only in each environment")
    for volume in record.spec.volumes:
        if volume.read_only and path.is_relative_to(volume.target):
            return told._replace(why=f"the volume at {volume.target} is declared read_only")
    if not record.spec.read_only:
        return told._replace(why=_MOUNT)
    risk = "the program could then change all its files; a volume for this folder alone permits less"
    return told._replace(part=Setting("read_only", "false", risk))


def _merged(found: Iterable[Refused]) -> list[Refused]:
    """Count refusals of the same kind and text as one; return the merged refusals."""
    merged: dict[tuple[str, str], Refused] = {}
    for one in found:
        known = merged.get((one.kind, one.what))
        if known is not None:
            one = one._replace(
                times=known.times + one.times, first=min(known.first, one.first), last=max(known.last, one.last)
            )
        merged[one.kind, one.what] = one
    return list(merged.values())
