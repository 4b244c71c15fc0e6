"""Exhaustion audit of an environment: how much of shared resources it can take, and how long it makes others wait.

This is the audit's second part. For each of the kernel's resource pools, a twin of the environment takes all units that
it can get. Meanwhile the host's root and a second twin (the *neighbour*) each ask for a small share, and the kernel's
count of the whole pool is read. After the pools, the twin runs each *storm* (a load that makes others wait), while
operations of others are timed. The twin releases everything after each pool and storm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import msgspec

from netspace.environment.audit import pools, storms
from netspace.environment.audit.rivals import Rivals, rivals
from netspace.host import audit
from netspace.host.host import Host
from netspace.spec.types import Network

Outcome = Literal["held", "leak", "open", "skipped", "slow"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
# A pool counts as bounded by memory if the kernel charged the twin at least this many bytes: in all, and per unit. Both
# are above the kernel's rounding.
CHARGED, LEAST = 2 * 1024**2, 48
ON_DISK = ("disk (MiB)", "files on disk")  # memory has only copies of these; the kernel may drop them
FULL = 0.9  # from this share on, a host-wide pool counts as used up
# Factors by which others may wait longer.
GOALS: Mapping[str, float] = {"answer": 2.0, "exec": 1.5, "look": 1.5, "restart": 1.5}
# Seconds below which a wait doesn't count; 0.02 for those not named. The health watcher may take a restart for one that
# still goes on, and then looks again after a second.
NOTICED: Mapping[str, float] = {"health": 1.5}
_ANSWERS = 200
_TIMES = 3


class Share(msgspec.Struct, frozen=True):
    """Units of a pool that root or the neighbour got.

    :param before: before the twin took its units.
    :param during: while the twin held its units.
    :param after: after the twin had released them.
    """

    before: int
    during: int
    after: int


class Used(msgspec.Struct, frozen=True):
    """Use of a pool of the whole host, in units.

    :param before: in use before the twin took its units.
    :param during: in use while the twin held its units.
    :param most: the size of the pool.
    """

    before: int
    during: int
    most: int


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The audit's result for one pool, one storm (a load that makes others wait), or one attack on a service.

    The parameters are those of :func:`judge`, and:

    :param seconds: by operation, the seconds that it took alone and during the storm or attack.
    """

    name: str
    group: Literal["pools", "waiting", "services"]
    outcome: Outcome
    detail: str
    taken: int = 0
    ended: str = ""
    root: Share | None = None
    neighbour: Share | None = None
    host: Used | None = None
    charged: int = 0
    seconds: dict[str, list[float]] = {}


def judge(
    name: str, taken: int, ended: str, root: Share, neighbour: Share, host: Used | None = None, charged: int = 0
) -> Row:
    """Return the row of a pool, from the units that root and the neighbour got. Pure.

    :param taken: the units that the twin took.
    :param ended: why the twin got no more; empty if it was not refused.
    :param host: the count of the whole pool, if the kernel has one.
    :param charged: bytes that the taken units added to the twin's memory.
    """
    paid = taken > 0 and name not in ON_DISK and charged >= max(CHARGED, taken * LEAST)
    told = f"took {taken}, " + (f"then {ended}" if ended else "and was not refused")
    told += f", each for {charged // taken} bytes of its own memory" if paid else ""
    told += f"; of the host's {host.most} {host.before} were in use, then {host.during}" if host else ""
    shares = (("root", root), ("a neighbour", neighbour))
    found = [
        f"{who} got {there} of {share.before} {when}"
        for who, share in shares
        for when, there in (("meanwhile", share.during), ("afterwards", share.after))
        if there < share.before
    ]
    if host and host.during >= FULL * host.most > host.before:
        found.append("the host has no more")
    spared = host is not None and host.during - host.before < taken // 100
    outcome: Outcome = "leak" if found else "held" if ended or paid or spared else "open"
    if not root.before and not neighbour.before and not taken:
        outcome = "skipped"
        found = ["nobody gets any on this host"]
    return Row(
        name=name,
        group="pools",
        outcome=outcome,
        detail="; ".join([told, *found]),
        taken=taken,
        ended=ended,
        root=root,
        neighbour=neighbour,
        host=host,
        charged=charged if paid else 0,
    )


def compare(
    name: str, alone: Mapping[str, float], meanwhile: Mapping[str, float], goals: Mapping[str, float] = GOALS
) -> Row:
    """Return the row of a storm, from the seconds that each operation took alone and during the storm. Pure.

    :param goals: the factors by which each operation may take longer.
    """
    told, slow = slower(alone, meanwhile, goals)
    return Row(
        name=name,
        group="waiting",
        outcome="slow" if slow else "held",
        detail=told,
        seconds={what: [round(alone[what], 6), round(meanwhile[what], 6)] for what in goals},
    )


def slower(
    alone: Mapping[str, float], meanwhile: Mapping[str, float], goals: Mapping[str, float]
) -> tuple[str, list[str]]:
    """Return a text with the durations of operations, and those operations that took too long. Pure."""
    slow = [
        what
        for what, goal in goals.items()
        if meanwhile[what] > goal * alone[what] and meanwhile[what] > NOTICED.get(what, 0.02)
    ]
    told = ", ".join(f"{what} {alone[what] * 1000:.1f} -> {meanwhile[what] * 1000:.1f} ms" for what in goals)
    return told + (f"; more than it should: {', '.join(slow)}" if slow else ""), slow


# -- the kernel's counts of host-wide pools --------------------------------------------------------
def _number(path: str, word: int = 0) -> int:
    return int(Path("/proc/sys", path).read_text().split()[word])


def _sockets(protocol: str, key: str) -> int:
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == f"{protocol}:":
            return int(words[words.index(key) + 1])
    return 0


def _disk(folder: Path, files: bool) -> tuple[int, int]:
    info = os.statvfs(folder)
    return (info.f_files - info.f_ffree, info.f_files) if files else (info.f_blocks - info.f_bfree, info.f_blocks)


def readings(state: Path) -> dict[str, Callable[[], tuple[int, int]]]:
    """Return, by the pool's name, functions that return two numbers: the units in use and the size of the pool.

    :param state: netspace's state folder.
    """
    return {
        "processes": lambda: (
            int(Path("/proc/loadavg").read_text().split()[3].split("/")[1]),
            _number("kernel/pid_max"),
        ),
        "descriptors": lambda: (_number("fs/file-nr"), _number("fs/file-nr", 2)),
        "asynchronous file operations (64)": lambda: (_number("fs/aio-nr"), _number("fs/aio-max-nr")),
        "pseudo terminals": lambda: (_number("kernel/pty/nr"), _number("kernel/pty/max")),
        "buffers of TCP connections": lambda: (_sockets("TCP", "mem"), _number("net/ipv4/tcp_mem", 1)),
        # Beyond the first number the kernel grants UDP no more: for UDP it has no stage of pressure.
        "buffers of UDP sockets": lambda: (_sockets("UDP", "mem"), _number("net/ipv4/udp_mem")),
        "orphaned TCP connections": lambda: (_sockets("TCP", "orphan"), _number("net/ipv4/tcp_max_orphans")),
        "connections that the host follows": lambda: (
            _number("net/netfilter/nf_conntrack_count"),
            _number("net/netfilter/nf_conntrack_max"),
        ),
        "disk (MiB)": partial(_disk, state, False),
        "files on disk": partial(_disk, state, True),
    }


# -- trying ---------------------------------------------------------------------------------------
def exhaust(
    host: Host, name: str, network: Network, waiting: bool = True, only: Collection[str] | None = None
) -> list[Row]:
    """Let a twin of an environment take all units that it gets of each pool, and make others wait.

    :param network: the ranges from which the twins get addresses.
    :param waiting: whether to run the storms, too.
    :param only: the pools and storms to try; None: all.
    :return: a row for each pool and for each storm.
    :raises NetspaceError: the environment doesn't exist, or its twins can't run.
    """
    taken = [pool for pool in pools.POOLS if only is None or pool in only]
    loads = [storm for storm in storms.STORMS if waiting and (only is None or storm in only)]
    if not taken and not loads:
        return []
    with ExitStack() as stack:
        there = stack.enter_context(audit.twins(host, name, network))
        gateways = list(host.interfaces.list()[there.names[0]]["gateways"].values())
        three = stack.enter_context(rivals(host.environments.making, there.original, there.names))
        three.attacker.ask(echo=True)
        looks = readings(host.layout.state)
        rows = [_surely(three, pool, looks.get(pool), gateways) for pool in taken]
        times: dict[str, Callable[[], object]] = {
            "exec": three.enter,
            "look": host.environments.observe,
            "restart": three.neighbour.restart,
        }
        for storm in loads:
            alone = _timed(three, times)
            three.attacker.ask(storm=storm)
            rows.append(compare(storm, alone, _timed(three, times)))
            three.attacker.ask(drop=True)
        return rows


def _surely(three: Rivals, name: str, look: Callable[[], tuple[int, int]] | None, aim: list[str]) -> Row:
    """Return the row of a pool. If the pool looks unbounded, try it again, and return the second row.

    The kernel may give a pool pages that an earlier pool left, and charge nothing for them.

    :param three: the twin, the neighbour and root.
    :param look: reads the kernel's count of the pool; None: there is no count.
    :param aim: the host's addresses on the twin's interface.
    """
    row = _pool(three, name, look, aim)
    return _pool(three, name, look, aim) if row.outcome == "open" else row


def _pool(three: Rivals, name: str, look: Callable[[], tuple[int, int]] | None, aim: list[str]) -> Row:
    who = (three.root, three.neighbour)
    before, used, memory = [rival.ask(share=name).taken for rival in who], _read(look), three.memory()
    answer = three.attacker.ask(take=name, aim=aim)
    used_then, charged = _read(look), three.memory() - memory
    during = [rival.ask(share=name).taken for rival in who]
    three.attacker.ask(drop=True)
    after = [rival.ask(share=name).taken for rival in who]
    root, neighbour = (Share(*numbers) for numbers in zip(before, during, after, strict=True))
    host = Used(used[0], used_then[0], used[1]) if used and used_then else None
    return judge(name, answer.taken, answer.ended, root, neighbour, host, charged)


def _read(look: Callable[[], tuple[int, int]] | None) -> tuple[int, int] | None:
    try:
        return look() if look else None
    except (OSError, ValueError, IndexError):
        return None  # this kernel has no such count


def _timed(three: Rivals, times: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the seconds that operations take.

    For the neighbour's answers this is the 99th percentile, for each operation in *times* the median.

    :param three: the twin, the neighbour and root.
    :param times: by name, functions that each do one operation.
    """
    answers = sorted(_seconds(lambda: three.neighbour.ask(echo=True)) for _ in range(_ANSWERS))
    found = {what: median(_seconds(act) for _ in range(_TIMES)) for what, act in times.items()}
    return {"answer": answers[int(len(answers) * 0.99)], **found}


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
