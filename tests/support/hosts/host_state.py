"""The part of a host's state that no program in an environment may change, and its comparison with limits.

Limits are for values that change by themselves (a log, caches). They are far below the amount that an environment could
use.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from netspace.environment import user_ids
from netspace.environment.audit import exhaust, pools
from netspace.layout import Layout
from support.hosts import snapshot

MIB = 1024**2
# Bytes that the host's own memory (not given back on demand) and disk may grow by.
MEMORY = 256 * MIB
DISK = 160 * MIB  # an environment's `disk`, and its log
DESCRIPTORS = 16
SECONDS = 2.0  # that the wall clock may be moved against the one that nobody sets
# systemd's own, which come and go: services, their files, and a file for each unit whose output it knows.
FOREIGN = ("/run/systemd/", "/run/log/", "/run/udev/", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/init.scope")
# netspace's record of how a program ended, under systemd: at most two small files for each environment.
ENDED = "/run/netspace/ended"
HELPERS = ("/lib/systemd/", "(udev-worker)", "(sd-")
BULKY = ("memory (MiB)", "disk (MiB)", "compiled filters")  # pools of which a share takes long
SETTINGS = (
    *("kernel/core_pattern", "kernel/hostname", "kernel/domainname", "kernel/pid_max", "kernel/threads-max"),
    *("kernel/sched_rt_runtime_us", "vm/overcommit_memory", "vm/swappiness", "vm/nr_hugepages", "fs/aio-max-nr"),
    *("fs/file-max", "fs/nr_open", "fs/inotify/max_user_instances", "net/ipv4/ip_forward"),
)


@dataclass(frozen=True)
class State:
    """The observed state of a host.

    *same* must not change, and each value of *bounded* must grow by less than its limit.
    """

    same: dict[str, object]
    bounded: dict[str, float]


BOUNDS = {"memory": MEMORY, "disk": DISK, "descriptors": DESCRIPTORS, "clock": SECONDS}


def look() -> State:
    """Return the state of the host that this process is on."""
    same = {key: _ours(value) for key, value in snapshot.host().items() if key != "processes"}
    same["settings"] = [Path("/proc/sys", name).read_text() for name in SETTINGS]
    same["modules"] = _lines("/proc/modules", 1)
    same["swaps"] = _lines("/proc/swaps", 1)
    same["segments"] = [line for kind in ("msg", "sem", "shm") for line in _lines(f"/proc/sysvipc/{kind}", 2)]
    same["processors"] = Path("/sys/devices/system/cpu/online").read_text()
    same["processes"] = sorted({command for command in _own() if not any(one in command for one in HELPERS)})
    same["shares"] = _shares()
    layout = Layout()
    return State(
        same,
        {
            "memory": _memory(),
            "disk": sum(_used(path) for path in (layout.state, layout.logs, layout.run)),
            "descriptors": sum(_descriptors(pid) for pid in _own().values()),
            "clock": abs(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - _BOOT),
        },
    )


_BOOT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def changed(before: State, after: State) -> dict[str, object]:
    """Return the changed values by name, before and after; of a list only the removed and the new items."""
    found: dict[str, object] = {
        key: _difference(before.same[key], after.same[key])
        for key in before.same
        if before.same[key] != after.same[key]
    }
    for key, value in after.bounded.items():
        if value - before.bounded[key] > BOUNDS[key]:
            found[key] = (before.bounded[key], value)
    return found


def _difference(before: object, after: object) -> object:
    if isinstance(before, list) and isinstance(after, list):
        gone, new = ([one for one in some if one not in others] for some, others in ((before, after), (after, before)))
        if gone or new:
            return {"gone": gone, "new": new}
    return before, after


def _ours(value: object) -> object:
    if not isinstance(value, list):
        return value
    return [one for one in value if not (isinstance(one, str) and _left_out(one))]


def _left_out(path: str) -> bool:
    return path.startswith(ENDED) or (path.startswith(FOREIGN) and "netspace" not in path)


def _shares() -> dict[str, int]:
    """Return the number of units that root gets from each pool of the kernel when root asks for a few."""
    with tempfile.TemporaryDirectory() as folder:
        program = exhaust.Program(folder)
        try:
            return {name: program.answer({"share": name})[0] for name in pools.POOLS if name not in BULKY}
        finally:
            program.close()


def _own() -> dict[str, int]:
    """Return the processes that don't belong to environments, by command line."""
    found = {}
    for pid, command in snapshot.processes().items():
        try:
            if os.stat(f"/proc/{pid}").st_uid < user_ids.FIRST:
                found[command] = pid
        except FileNotFoundError:
            continue
    return found


def _lines(path: str, words: int) -> list[str]:
    if not os.path.exists(path):  # a kernel built without it
        return []
    return sorted(" ".join(line.split()[:words]) for line in Path(path).read_text().splitlines())


def _memory() -> int:
    """Return the number of bytes that the kernel uses itself and can't free."""
    table = dict(re.findall(r"^(\S+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return sum(int(table[key]) for key in ("SUnreclaim", "KernelStack", "PageTables", "Percpu")) * 1024


def _used(path: Path) -> int:
    if not path.exists():
        return 0
    info = os.statvfs(path)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
