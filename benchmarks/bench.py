"""Shared parts of the benchmarks: sandboxes, rounds, and the form of figures. Measures nothing itself.

Each line of a result compares one value with the peer's value, both measured in the same run. Lines of *processor time*
don't change on a machine that is busy with other work. ``target`` is in the value's unit; a target that is declared as
a ratio is multiplied by the peer's value. A line without a target is for information.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_utils"))

_INSIDE = "NETSPACE_BENCHMARK_SANDBOX"
LOAD = "NETSPACE_BENCHMARK_LOAD"
# Removed from the environment: real hosts have bytecode files, and compiling the library costs each salt-call 0.1 s.
_FORBIDDEN = "PYTHONDONTWRITEBYTECODE"
_STATE = Path("/var/lib/netspace")


def say(text: str) -> None:
    """Print progress to stderr, since stdout is only for the result."""
    print(text, file=sys.stderr, flush=True)


def arguments(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    form.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md, alone on stdout")
    told = f"number of rounds; the result has their medians (default {rounds})"
    parser.add_argument("--rounds", type=int, default=rounds, help=told)
    parser.add_argument(
        "--memory-disk",
        action="store_true",
        help="keep netspace's files in memory, not on this machine's disk: the difference is the cost of syncing",
    )
    return parser


def on_a_host_of_its_own() -> None:
    """Continue in ``scripts/sandbox``: replace this process by the sandbox, unless it already runs in a sandbox."""
    if os.environ.get(_INSIDE):
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks make namespaces and mounts: run them as root")
    command = [str(ROOT / "scripts" / "sandbox"), sys.executable, *sys.argv]
    note_load()
    variables = {name: value for name, value in os.environ.items() if name != _FORBIDDEN}
    os.execve(command[0], command, {**variables, _INSIDE: "1"})


def on_a_machine_with_systemd() -> None:
    """Continue on a machine whose process 1 is systemd, unless this is that machine already."""
    if os.environ.get(_INSIDE):
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks make namespaces and mounts: run them as root")
    machine = str(ROOT / "tests/support/hosts/systemd_host.py")
    script = [str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    note_load()
    os.execve(sys.executable, [sys.executable, machine, sys.executable, *script], {**os.environ, _INSIDE: "1"})


def note_load() -> None:
    """Record the machine's load for a table's caption, before anything is measured."""
    os.environ[LOAD] = f"{os.getloadavg()[0]:.1f}"


@contextlib.contextmanager
def disk(*, in_memory: bool) -> Iterator[Path]:
    """Yield a scratch folder; it and netspace's state are on disk, as on a real host, unless *in_memory* is set."""
    from netspace.environment.storage import mounts

    place = Path("/dev/shm") if in_memory else ROOT / ".cache/benchmarks"
    place.mkdir(exist_ok=True, parents=True)
    if not in_memory:
        # For some time after a file was removed, ext4 doesn't reuse its inode, but examines each such inode for every
        # new file near by. So that no round measures the removals of another round (or of other tests on this machine),
        # this attribute makes ext4 put each folder made here into another region of the disk.
        subprocess.run(["chattr", "+T", str(place)], check=False, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)
        if not in_memory:
            state = folder / "state"
            state.mkdir(mode=0o700)
            mounts.mount(state, _STATE, "none", mounts.BIND)
        try:
            yield folder
        finally:
            if not in_memory:
                mounts.unmount(_STATE)


def processor() -> float:
    """Return the milliseconds of processor time that all programs in the sandbox have used so far.

    Programs outside of the sandbox don't count.
    """
    words = processor_file().read_text().split()
    return int(words[1]) / 1e3 if len(words) > 1 else int(words[0]) / 1e6


def processor_file() -> Path:
    """Return the file with the processor time of the sandbox: its one number, or its second word in microseconds."""
    version1, version2 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage"), Path("/sys/fs/cgroup/cpu.stat")
    return version1 if version1.exists() else version2


class Rounds:
    """Measured values by name; each round adds a value."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    @contextlib.contextmanager
    def timed(self, name: str, each: int = 1) -> Iterator[None]:
        """Measure the context's milliseconds and its processor time, both divided by *each*.

        The first value is recorded as *name*, the second as ``<name> cpu``.
        """
        start, used = time.perf_counter(), processor()
        yield
        self.note(name, (time.perf_counter() - start) * 1000 / each)
        self.note(f"{name} cpu", (processor() - used) / each)

    def time(self, name: str, work: Callable[[], Any], each: int = 1) -> None:
        with self.timed(name, each):
            work()

    def middle(self, name: str) -> float:
        return statistics.median(self.values[name])

    def __contains__(self, name: str) -> bool:
        return name in self.values


def line(
    value: float, unit: str, peer: str, peer_value: float, *, ratio: float | None = None, limit: float | None = None
) -> dict[str, Any]:
    """Return one line of the result.

    :param ratio: the target: at most this many times the peer's value.
    :param limit: the target: at most this value.
    """
    target = limit if ratio is None else ratio * peer_value
    return {
        "value": round(value, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 3),
        "ratio": round(value / peer_value, 3) if peer_value else None,
        "target": None if target is None else round(target, 3),
        "met": None if target is None else value <= target,
    }


def machine() -> str:
    """Return a description of this machine, for a table's caption."""
    found = [f"Linux {os.uname().release.split('-')[0]}"]
    for program in ("crun", "podman", "docker", "incus"):
        with contextlib.suppress(FileNotFoundError):
            said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
            # crun, podman and docker print "podman version 5.4.2", incus prints "6.0.4".
            found.append(f"{program} {said.replace(',', ' ').split()[2 if ' ' in said else 0]}")
    version = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    found += [f"{os.cpu_count()} processors", f"control groups of version {version}"]
    return ", ".join(found)


def figure(value: float, unit: str) -> str:
    """Return a value with three significant digits."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{text} {unit.replace(' each', '')}"


def _rows(lines: Mapping[str, Mapping[str, Any]], load: str, figures: str) -> Iterator[str]:
    yield f"{machine()}; load {load} before and {os.getloadavg()[0]:.1f} after; {figures}."
    yield ""
    yield "| | netspace | peer | ratio | goal | |"
    yield "|---|---|---|---|---|---|"
    for name, one in lines.items():
        unit = one["unit"]
        peer = f"{one['peer']} {figure(one['peer_value'], unit)}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        goal = "" if one["target"] is None else figure(one["target"], unit)
        met = {None: "", True: "met", False: "**missed**"}[one["met"]]
        yield f"| {name} | {figure(one['value'], unit)} | {peer} | {ratio} | {goal} | {met} |"


def tell(lines: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, figures: str = "medians") -> None:
    """Print the result.

    :param figures: a description of the values, for a table's caption.
    """
    if options.json:
        print(json.dumps(lines, indent=1))
        return
    if options.markdown:
        print("\n".join(_rows(lines, os.environ.get(LOAD, "unknown"), figures)))
        return
    for name, one in lines.items():
        ratio = "" if one["ratio"] is None else f"x{one['ratio']:.2f}"
        judged = "" if one["met"] is None else f"target {one['target']:.2f} {'met' if one['met'] else 'MISSED'}"
        print(
            f"{name:52} {one['value']:9.2f} {one['unit']:8} {ratio:>8} {one['peer']}: {one['peer_value']:.2f}"
            f"{'   ' + judged if judged else ''}"
        )
