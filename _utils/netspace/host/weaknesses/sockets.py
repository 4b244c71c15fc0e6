"""Kernel pools that all sockets of a host share, also the sockets in environments (ip(7), tcp(7), udp(7)). Pure.

The kernel also charges the content of a socket to its environment's memory (``docs/limits.md``). So one environment
can't take a whole pool if the pool is at least as large as the environment's memory limit. Users other than root can't
read the environments' declarations. So the rows compare each pool with the default memory limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from netspace.host.weaknesses.readings import Reading, path
from netspace.host.weaknesses.row import Outcome, Row, row, said, unseen
from netspace.spec.types import Limits

_PAGE = 4096  # bytes; with larger pages the same number is more
_ORPHAN = 7 * 1024  # bytes that the kernel charges for an orphan (measured, Linux 6.12 and 6.18)
_USUAL = int(Limits().memory)
_WORDS = re.compile(r"[0-9]{1,18}([ \t]+[0-9]{1,18}){0,2}")


class Pool(NamedTuple):
    """A sysctl with the size of a pool.

    :param at: the index of the size among the sysctl's numbers.
    :param of: how many numbers the sysctl has.
    :param least: the lowest good size.
    :param unit: the unit of the size.
    :param why: the effect on the host's sockets when the pool is used up.
    """

    name: str
    at: int
    of: int
    least: int
    unit: str
    why: str


POOLS = (
    Pool(
        "net.ipv4.udp_mem",
        *(0, 3, _USUAL // _PAGE),
        "pages",
        "Beyond its first number, no UDP socket of the host gets more than its least buffer.",
    ),
    Pool(
        "net.ipv4.tcp_mem",
        *(1, 3, _USUAL // _PAGE),
        "pages",
        "Beyond its second number, the kernel makes the buffers of all TCP connections of the host smaller.",
    ),
    Pool(
        "net.ipv4.tcp_max_orphans",
        *(0, 1, _USUAL // _ORPHAN),
        "connections",
        "Beyond this number, the kernel resets connections of the whole host that their program has closed, with the "
        "data that was not sent yet.",
    ),
)
SYSCTLS = tuple(pool.name for pool in POOLS)


def rows(known: Mapping[str, Reading]) -> Iterator[Row]:
    """Yield a row for each of :data:`POOLS`."""
    return (_row(pool, known[pool.name]) for pool in POOLS)


def _row(pool: Pool, reading: Reading) -> Row:
    reading = reading._replace(text=" ".join(reading.text.split()))  # the kernel writes tabs
    numbers = [int(word) for word in reading.text.split()] if _WORDS.fullmatch(reading.text) else []
    outcome: Outcome = "unknown"
    remedy = ""
    if not reading.error and len(numbers) == pool.of:
        outcome = "good" if numbers[pool.at] >= pool.least else "weak"
        raised = [*numbers[: pool.at], *(max(number, pool.least) for number in numbers[pool.at :])]
        remedy = _remedy(pool.name, " ".join(map(str, raised)))
    place = {(0, 3): "its first number ", (1, 3): "its second number "}.get((pool.at, pool.of), "")
    return row(
        pool.name,
        outcome,
        said(reading),
        expected=f"{place}{pool.least} or more",
        matters="environments",
        why=f"{pool.why} One environment with enough memory can take all of these {pool.unit}. With {pool.least} of "
        f"them it needs {_USUAL // 1024**2} MiB for that, the memory of an environment that declares none.",
        remedy=remedy,
        unseen=f"{unseen(path(pool.name))}. Only the host's own network namespace has it",
    )


def _remedy(name: str, value: str) -> str:
    return (
        f"`sysctl -w {name}='{value}'`, and the line `{name} = {value}` in a file in /etc/sysctl.d/; more, where an "
        "environment has more memory; or give environments less memory"
    )
