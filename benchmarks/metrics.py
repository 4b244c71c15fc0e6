"""The processor time of ``netspace.metrics`` with 1,000 environments, compared with bare reads of the same files.

usage: sudo python benchmarks/metrics.py [--json | --markdown] [--count N] [--rounds N]

It starts a sandbox (``scripts/sandbox``). The environments have only the files that the metrics are read from: record,
definition, trace of a running process, health mark and cgroup. All of them share one process. These figures are
compared:

*all metrics* -- one call of the function, after its imports, while a supervisor runs. The peer opens, reads and closes
each needed file (the trace, the process, and two of each cgroup) by bare system calls, without parsing the content.

*all metrics without a supervisor* -- the same call while no supervisor runs. It reads 1,000 files more, with the
kernel's counts of OOM kills.

*the text alone* -- writing the text from values that were read before.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
import msgspec
from bench import Rounds, line, say

if TYPE_CHECKING:
    from netspace.layout import Layout

COUNT = 1000
USE = ("memory", "processor_seconds")
TARGET = 50.0


def make(count: int, pid: int) -> None:
    """Make the files of *count* environments from which the metrics are read."""
    from netspace import files
    from netspace.environment import record as records
    from netspace.environment.container import oci_runtime
    from netspace.environment.health import record as verdict
    from netspace.interface.endpoints import host_name
    from netspace.layout import Layout
    from netspace.supervision import cgroup
    from netspace.supervision import definitions as services

    layout = Layout()
    for folder in (
        layout.records(records.KIND),
        services.folder(layout),
        services.traces(layout),
        verdict.folder(layout),
    ):
        folder.mkdir(parents=True, exist_ok=True)
    trace = services.Trace(
        "running", pid, int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]), time.time()
    )
    for number in range(count):
        name = f"bench{number}"
        service = oci_runtime.service_name(name)
        (layout.records(records.KIND) / f"{name}.json").write_bytes(files.encode({"version": 1}))
        (services.folder(layout) / f"{service}.json").write_bytes(b"{}")
        services.write_trace(layout, service, trace)
        (verdict.folder(layout) / f"{name}.json").touch()
        verdict.up(layout, name).touch()
        for place in cgroups(cgroup.payload_cgroup(layout, service)):
            place.mkdir(parents=True, exist_ok=True)
    ends = [host_name(layout.instance, f"bench{number}") for number in range(count)]
    added = "\n".join([f"link add {end} type bridge" for end in ends])
    subprocess.run(["ip", "-batch", "-"], input=added, text=True, check=True)
    interfaces(layout, ends)


def interfaces(layout: Layout, ends: list[str]) -> None:
    """Make the records of the environments' interfaces, their index, and the kernel's counts of their packets."""
    from netspace import files
    from netspace.interface import claims
    from netspace.interface import record as records
    from netspace.interface.firewall import counting
    from netspace.nftables import library
    from netspace.nftables.table import Chain, Table, whole
    from netspace.spec import parse

    rules = [{"direction": "out", "cidr": "198.51.100.0/24", "port": port} for port in (80, 443)]
    spec = parse.interface({"kind": "veth", "allow": rules})
    layout.records(records.KIND).mkdir(parents=True, exist_ok=True)
    index = claims.index(layout)
    index.read()
    index.begin()
    for number, end in enumerate(ends):
        addresses = {"ipv4": f"10.203.{number >> 6}.{4 * (number & 63) + 2}"}
        record = records.Record(spec, addresses, {"ipv4": "10.203.0.1"}, end)
        records.path(layout, f"bench{number}").write_bytes(files.encode(record.encoded()))
    index.note([f"bench{number}" for number in range(len(ends))])
    elements = {
        end.encode().ljust(16, b"\0") + counting.key("out", what): None
        for end in ends
        for what in ("none", "tcp 198.51.100.0/24 443")
    }
    counted = msgspec.structs.replace(counting.collection(counting.INTERFACE), elements=elements)
    library.run(whole(layout.nft_table, Table(sets={counting.SET: counted}, chains={"any": Chain([])})), removes=True)


def cgroups(path: str) -> list[Path]:
    """Return the folders of a cgroup in all hierarchies."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [Path(f"{root}{path}")]
    return [Path(f"{root}/{name}{path}") for name in ("memory", "cpuacct")]


def watched() -> int:
    """Hold the supervisor's lock, as a running supervisor does; return the lock's descriptor."""
    from netspace.layout import Layout
    from netspace.supervision.daemon import presence

    lock = os.open(presence.lock_path(Layout()), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    presence.hold(lock)
    return lock


def floor(count: int, pid: int) -> Callable[[], None]:
    """Return a function that reads all files without parsing their content."""
    from netspace.environment import counters
    from netspace.environment.container import cgroups as groups
    from netspace.environment.container import oci_runtime
    from netspace.environment.storage import mounts
    from netspace.layout import Layout
    from netspace.supervision import cgroup
    from netspace.supervision import definitions as services

    layout = Layout()
    places: Any = counters.Reader(groups.Hierarchies(mounts.table(), ()))._places
    wanted = []
    for number in range(count):
        service = oci_runtime.service_name(f"bench{number}")
        path = cgroup.payload_cgroup(layout, service)
        wanted.append(f"{services.traces(layout)}/{service}.json")
        wanted += [f"{places[key].folder}{path}/{places[key].file}" for key in USE]
        wanted.append(f"/proc/{pid}/stat")

    def read() -> None:
        for path in wanted:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.read(fd, 65536)
            os.close(fd)

    return read


def measure(options: argparse.Namespace) -> tuple[Rounds, int]:
    """Return the milliseconds of processor time of each round, and the number of samples."""
    from netspace import openmetrics
    from netspace.host import metrics
    from netspace.host.host import Host
    from netspace.layout import Layout

    rounds = Rounds()

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        rounds.note(name, (time.process_time() - began) * 1000)

    with subprocess.Popen(["sleep", "10000"]) as sleeper:
        try:
            say(f"{options.count} environments")
            make(options.count, sleeper.pid)
            bare = floor(options.count, sleeper.pid)
            known = metrics.families(Host(Layout()))
            for _ in range(options.rounds):
                timed("unwatched", lambda: openmetrics.text(metrics.families(Host(Layout()))))
                lock = watched()
                timed("all", lambda: openmetrics.text(metrics.families(Host(Layout()))))
                timed("supervisor", lambda: Host(Layout()).supervisor.observe(noticed=True))
                os.close(lock)
                timed("text", lambda: openmetrics.text(known))
                timed("floor", bare)
        finally:
            sleeper.kill()
            for place in cgroups("/netspace"):
                for folder in sorted(place.glob("**/"), reverse=True):
                    folder.rmdir()
    return rounds, sum(len(one.samples) for one in known)


def main() -> None:
    parser = bench.arguments(__doc__, rounds=11)
    parser.add_argument("--count", type=int, default=COUNT, help=f"environments (default {COUNT})")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    rounds, samples = measure(options)
    middle = rounds.middle
    count, read = options.count, middle("floor")
    found = {
        f"metrics of {count} environments": line(middle("all"), "ms", "bare reading of the files", read, limit=TARGET),
        f"metrics of {count} environments without a supervisor": line(
            middle("unwatched"), "ms", "bare reading of the files", read
        ),
        "of that, the look at the supervisor": line(middle("supervisor"), "ms", "bare reading of the files", read),
        f"of that, the text of {samples} samples": line(middle("text"), "ms", "bare reading of the files", read),
    }
    bench.tell(found, options)


if __name__ == "__main__":
    main()
