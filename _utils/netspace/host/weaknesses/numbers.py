"""Numeric sysctls, and the ranges of their good values. A pure table.

Sources: the kernel's admin-guide/sysctl (kernel.rst, fs.rst, vm.rst), admin-guide/LSM/Yama.rst,
perf_event_open(2) and, for kptr_restrict, kallsyms_show_value() in kernel/ksyms_common.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from netspace.host.weaknesses.readings import Reading, path
from netspace.host.weaknesses.row import Matters, Outcome, Row, number, refused, row, said, setting, unseen


class Number(NamedTuple):
    """A sysctl and the range of its good values.

    :param least: the lowest good value.
    :param most: the highest good value; None: there is no upper bound.
    :param advised: the value that the remedy sets.
    :param calls: the system calls that the sysctl controls; all profiles of netspace refuse them.
    """

    name: str
    least: int
    most: int | None
    advised: int
    matters: Matters
    why: str
    calls: tuple[str, ...] = ()


def _of_folders(kind: str, most: int, advised: int, what: str) -> Number:
    why = f"In a folder that all may write to (/tmp), {what}. An environment's /tmp is its own."
    return Number(f"fs.protected_{kind}", 1, most, advised, "local users", why)


NUMBERS = (
    Number(
        "kernel.randomize_va_space",
        *(2, 2, 2),
        "environments",
        "Addresses are predictable in programs inside, and in the broker and the forwarder that they use.",
    ),
    Number(
        "vm.mmap_min_addr",
        *(4096, None, 65536),
        "environments",
        "A program can map page 0. If a bug makes the kernel use a null pointer, it reads the program's data there.",
    ),
    Number(
        "fs.aio-max-nr",
        *(2**26, None, 2**30),
        "environments",
        "These events are counted for the whole host. One environment under `standard` can have all of them, and other "
        "databases and virtual machines then get none. An event costs its environment 64 bytes of memory, so a "
        "high number is bounded by memory.",
    ),
    Number(
        "kernel.io_uring_disabled",
        *(1, 2, 2),
        "local users",
        "Any user can use io_uring, whose requests no filter of system calls sees.",
        ("io_uring_setup", "io_uring_enter", "io_uring_register"),
    ),
    Number(
        "kernel.unprivileged_bpf_disabled",
        *(1, 2, 2),
        "local users",
        "Any user can load programs into the kernel.",
        ("bpf",),
    ),
    Number(
        "vm.unprivileged_userfaultfd",
        *(0, 0, 0),
        "local users",
        "Any user can stop the kernel in the middle of a copy, which makes many of its bugs easier to exploit.",
        ("userfaultfd",),
    ),
    Number(
        "kernel.perf_event_paranoid",
        *(2, None, 2),
        "local users",
        "Any user can measure the kernel and, below 1, all that runs on a processor.",
        ("perf_event_open",),
    ),
    Number(
        "kernel.kptr_restrict",
        *(1, 2, 1),
        "local users",
        "With perf_event_paranoid below 2, /proc/kallsyms shows the kernel's addresses to any user. An environment's "
        "/proc/kallsyms is masked.",
    ),
    Number(
        "kernel.dmesg_restrict",
        *(1, 1, 1),
        "local users",
        "Any user can read the kernel's log, with addresses and with names of the whole host.",
        ("syslog",),
    ),
    Number(
        "kernel.yama.ptrace_scope",
        *(1, 3, 1),
        "local users",
        "A program can read and control every other program of the same user.",
        ("ptrace", "process_vm_readv", "process_vm_writev"),
    ),
    _of_folders("symlinks", 1, 1, "a user's symbolic link can make a program of root use another file"),
    _of_folders("hardlinks", 1, 1, "a user can make hard links to files that the user may not read or write"),
    _of_folders("fifos", 2, 1, "a program of root that wants to create a file can open a user's FIFO instead"),
    _of_folders("regular", 2, 2, "a program of root that wants to create a file can open a user's file instead"),
)


def rows(known: Mapping[str, Reading]) -> Iterator[Row]:
    """Yield a row for each of :data:`NUMBERS`."""
    return (_row(one, known[one.name]) for one in NUMBERS)


def _row(one: Number, reading: Reading) -> Row:
    value = number(reading)
    outcome: Outcome = "unknown"
    if value is not None:
        outcome = "good" if one.least <= value and (one.most is None or value <= one.most) else "weak"
    return row(
        one.name,
        outcome,
        said(reading),
        expected=_range(one.least, one.most),
        matters=one.matters,
        why=f"{one.why} {refused(one.calls)}" if one.calls else one.why,
        remedy=setting(one.name, one.advised),
        unseen=unseen(path(one.name)),
    )


def _range(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more"
    if most == least:
        return str(least)
    return f"{least} or {most}" if most == least + 1 else f"{least} to {most}"
