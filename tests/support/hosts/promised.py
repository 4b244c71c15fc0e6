"""Counts on a host that belongs to one test: objects that one environment adds, and the cost of one change.

The image is at a path that only these tests use, so that records have the same size everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse
from support.hosts import system_calls
from support.specification import calls
from support.waiting import until

OTHERS = 20
LIBRARY = Path(__file__).resolve().parents[3] / "_utils"
FOLDER = Path("/run/netspace-specification")
ROOT = FOLDER / "root"
ONE: Mapping[str, Any] = {
    "image": f"dir:{ROOT}",
    "command": ["/bin/busybox", "sleep", "100000"],
    "interface": {"kind": "veth"},
    "stop_timeout": 1,
}
PLAIN: Mapping[str, Any] = {**ONE, "interface": {"kind": "none"}}
LARGER: Mapping[str, Any] = {**ONE, "limits": {"memory": "300M"}}
OTHER: Mapping[str, Any] = {**LARGER, "env": {"A": "B"}}

# What a process of its own does, for strace.
ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse
environments, removed = json.loads(sys.argv[2])
host = Host(Layout())
if removed:
    result = host.remove_environments(removed)
else:
    result = host.converge_environments(parse.declaration({"environments": environments}))
assert result.ok, result.failures
"""


@dataclass(frozen=True)
class Counted:
    """System calls of one use of the library in a separate process, by kind.

    :param opened: files that were opened for writing.
    :param netlink: netlink messages, including queries.
    :param mounts: mounts made, moved and removed.
    """

    opened: int
    writes: int
    fsyncs: int
    netlink: int
    programs: int
    mounts: int


def apply(environments: Mapping[str, Mapping[str, Any]]) -> None:
    result = Host(Layout()).converge_environments(parse.declaration({"environments": environments}))
    assert result.ok, result.failures


def remove(*names: str) -> None:
    result = Host(Layout()).remove_environments(names)
    assert result.ok, result.failures


@contextlib.contextmanager
def machine() -> Iterator[None]:
    """A host with one environment, so that the supervisor and the image exist."""
    (ROOT / "bin").mkdir(parents=True)
    for folder in (FOLDER, ROOT, ROOT / "bin"):
        folder.chmod(0o755)
    shutil.copy("/bin/busybox", ROOT / "bin/busybox")
    try:
        apply({"resident": ONE})
        yield
    finally:
        Host(Layout()).teardown()
        shutil.rmtree(FOLDER)


def things() -> dict[str, int]:
    """Count all objects on the host, by kind."""
    layout = Layout()
    pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    found: Counter[str] = Counter(processes=len(pids))
    for pid in pids:
        with contextlib.suppress(OSError):
            found["threads"] += len(os.listdir(f"/proc/{pid}/task"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"supervise" in command:
                found["descriptors"] += len(os.listdir(f"/proc/{pid}/fd"))
    for key, folder in (("disk", layout.state), ("memory", layout.run), ("logs", layout.logs)):
        for path in _files(folder):
            found[f"{key}-files"] += 1
            found[f"{key}-bytes"] += path.lstat().st_size
    found["mounts"] = len(Path("/proc/self/mountinfo").read_text().splitlines())
    found["links"] = len(os.listdir("/sys/class/net"))
    found["namespaces"] = len(list(Path("/run/netns").iterdir()))
    found["rules"] = len(
        subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout.split(b"\n")
    )
    hierarchies = [path for path in Path("/sys/fs/cgroup").glob("**/netspace") if path.is_dir()]
    found["groups"] = max(len([one for one in path.iterdir() if one.is_dir()]) for path in hierarchies)
    return dict(found)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files on a folder's own file system, without the index, which belongs to no single environment."""
    device = folder.lstat().st_dev
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = [one for one in folders if one != "index" and (here / one).lstat().st_dev == device]
        yield from (here / file for file in files)


def added(environment: Mapping[str, Any]) -> dict[str, int]:
    """Add one more environment, and return the objects that it added once its state is stable; then remove it."""
    before = _stable()
    apply({"one": environment})
    after = things()
    remove("one")
    until(lambda: _unlogged(things()) == _unlogged(before), "the host has other objects than before")
    return {key: after.get(key, 0) - before.get(key, 0) for key in after}


def _stable() -> dict[str, int]:
    """Count all objects once their numbers stay equal. A new supervisor starts its stand-by process a little later."""
    found: list[dict[str, int]] = [things()]

    def stays() -> bool:
        found.append(things())
        return _unlogged(found[-1]) == _unlogged(found[-2])

    until(stays, "the host's objects change without end", pause=0.5)
    return found[-1]


def _unlogged(found: dict[str, int]) -> dict[str, int]:
    return {**found, "logs-bytes": 0}


def counted(environments: Mapping[str, Any], *removed: str) -> Counted:
    """Apply *environments*, or remove the environments of *removed*, under strace."""
    command = [sys.executable, "-B", "-c", ALONE, str(LIBRARY), json.dumps([environments, removed])]
    trace = FOLDER / "trace"
    seen = system_calls.of(command, trace)
    lines = [line.split(maxsplit=1)[-1] for line in seen.changes]
    kinds = Counter(line.partition("(")[0] for line in lines)
    return Counted(
        opened=len(seen.opened),
        writes=kinds["write"],
        fsyncs=kinds["fsync"] + kinds["fdatasync"] + kinds["syncfs"] + kinds["sync"],
        netlink=sum("nlmsg_type" in line for line in lines) + len(seen.asked),
        programs=len(seen.started) - 1,
        mounts=sum(kinds[name] for name in ("mount", "move_mount", "umount2")),
    )


def system_calls_of(environments: Mapping[str, Any]) -> int:
    """Return the number of all system calls of an apply, Python's start included."""
    command = [sys.executable, "-B", "-c", ALONE, str(LIBRARY), json.dumps([environments, []])]
    told = FOLDER / "counts"
    subprocess.run(["strace", "-f", "-c", "-o", str(told), *command], check=True, capture_output=True)
    columns = [line.split() for line in told.read_text().splitlines()[2:-2]]
    # How often threads wait for each other is chance.
    return sum(int(line[3]) for line in columns if line[-1] not in ("futex", "sched_yield", "restart_syscall"))


def modules(environments: Mapping[str, Any]) -> int:
    """Return the number of the library's modules that a process loads for an apply."""
    last = "print(sum(name.partition('.')[0] == 'netspace' for name in sys.modules))"
    command = [sys.executable, "-c", ALONE + last, str(LIBRARY), json.dumps([environments, []])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def work(environments: Mapping[str, Any]) -> int:
    """Return the number of calls within the library that an apply makes in this process."""
    return calls(lambda: apply(environments))


def work_of_removal(*names: str) -> int:
    """Return the number of calls within the library that a removal makes in this process."""
    return calls(lambda: remove(*names))
