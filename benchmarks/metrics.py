"""The processor time of ``netspace.metrics`` with 1,000 environments, compared with bare reads of the same files.

usage: sudo python benchmarks/metrics.py [--json | --markdown] [--count N] [--rounds N] [--systemd]

It starts a sandbox (``scripts/sandbox``). netspace's own supervisor runs a program for each environment. Apart from
that, the environments have only the files from which the metrics are read: record, health mark and cgroup. These
figures are compared:

*all metrics* -- one call of the function, after its imports, while the supervisor runs. The supervisor's work for it is
included. The peer opens, reads and closes two files of each cgroup by bare system calls, without parsing the content.
Memory and processor time of an environment can't be read elsewhere.

*all metrics, the supervisor not a parent* -- the same call after the supervisor was killed and the next one took over
the programs. The programs aren't its children, so it reads a file in /proc for each of them.

*all metrics without a supervisor* -- the same call while SIGSTOP halts the supervisor. The function then reads 2,000
files more: the supervisor's traces of starts, and the processes in /proc. The peer reads the same 4,000 files.

*the text alone* -- writing the text from values that were read before.

With ``--systemd``, systemd runs the programs, as process 1 of a machine in namespaces
(``tests/support/hosts/systemd_host.py``). What process 1 does for the call is counted. These figures are compared:

*all metrics* -- one call of the function. The peer reads the same files: of each environment its unit, its PID file,
its process, and its cgroup. Where the machine's cgroups have no memory controller, their memory isn't read by either.

*the question to systemd* -- of that, the states of all units. The peer asks for seven properties of each unit, as
other functions do.
"""

from __future__ import annotations

import argparse
import os
import signal
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
    from netspace.supervision.service import Service, Supervisor

COUNT = 1000
USE = ("memory", "processor_seconds")
TARGET = 50.0


def make(count: int) -> Supervisor:
    """Make the files of *count* environments from which the metrics are read; return their supervisor."""
    from netspace.environment import claims
    from netspace.environment import record as records
    from netspace.environment.container import oci_runtime
    from netspace.environment.health import record as verdict
    from netspace.environment.images import Image
    from netspace.environment.images.sources import Defaults
    from netspace.interface.endpoints import host_name
    from netspace.layout import Layout
    from netspace.spec import parse
    from netspace.supervision import cgroup, select

    layout = Layout()
    spec = parse.environment("bench", {"image": "tar:/srv/bench.tar"})
    image = Image("d" * 64, "i", Defaults())
    for folder in (layout.records(records.KIND), verdict.folder(layout)):
        folder.mkdir(parents=True, exist_ok=True)
    supervisor = select(layout)
    services = [oci_runtime.service_name(f"bench{number}") for number in range(count)]
    supervisor.define([program(service) for service in services])
    failed = supervisor.start(services)
    assert not failed, failed
    index = claims.index(layout)  # an apply writes this file
    index.read()
    index.begin()
    for number, service in enumerate(services):
        name = f"bench{number}"
        records.write(layout, name, records.Record(spec, "running", (number + 1) << 16, image, "c", "r"))
        (verdict.folder(layout) / f"{name}.json").touch()
        verdict.up(layout, name).touch()
        for place in cgroups(cgroup.payload_cgroup(layout, service)):
            place.mkdir(parents=True, exist_ok=True)
    index.note([f"bench{number}" for number in range(count)])
    ends = [host_name(layout.instance, f"bench{number}") for number in range(count)]
    added = "\n".join([f"link add {end} type bridge" for end in ends])
    subprocess.run(["ip", "-batch", "-"], input=added, text=True, check=True)
    interfaces(layout, ends)
    return supervisor


def program(service: str) -> Service:
    """Return a service that does nothing; under systemd a detached one, as environments are."""
    from netspace.supervision import cgroup
    from netspace.supervision.service import Service

    if not cgroup.booted():
        return Service(service, ("/bin/sleep", "infinity"))
    start = ("/bin/sh", "-c", 'sleep infinity >/dev/null 2>&1 </dev/null & echo $! >"$0"', pid_file(service))
    return Service(service, start, pid_file=Path(pid_file(service)))


def pid_file(service: str) -> str:
    return f"/run/{service}.pid"


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


def used(pid: int) -> float:
    """Return the milliseconds of processor time of this process and of *pid*."""
    return (time.process_time() + time.clock_gettime(~pid << 3 | 2)) * 1000  # the clock of clock_getcpuclockid(3)


def read(paths: list[str]) -> None:
    """Read files without parsing their content."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, 65536)
        os.close(fd)


def floor(count: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions that read files without parsing them: those of the cgroups, and all that metrics need."""
    from netspace.environment import counters
    from netspace.environment.container import oci_runtime
    from netspace.layout import Layout
    from netspace.supervision import cgroup
    from netspace.supervision import definitions as services

    layout = Layout()
    places: Any = counters.Reader()._places
    of_cgroups, others = [], []
    for number in range(count):
        service = oci_runtime.service_name(f"bench{number}")
        path = cgroup.payload_cgroup(layout, service)
        of_cgroups += [f"{places[key].folder}{path}/{places[key].file}" for key in USE]
        trace = services.read_trace(layout, service)
        assert trace is not None
        others += [f"{services.traces(layout)}/{service}.json", f"/proc/{trace.pid}/stat"]

    return lambda: read(of_cgroups), lambda: read(of_cgroups + others)


def measure(options: argparse.Namespace) -> tuple[Rounds, int]:
    """Return the milliseconds of processor time of each round, and the number of samples."""
    from netspace import openmetrics
    from netspace.host import metrics
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.supervision.daemon import presence
    from netspace.supervision.daemon.client import DaemonSupervisor

    rounds = Rounds()
    layout = Layout()

    def timed(name: str, work: Callable[[], object]) -> None:
        pid = presence.holder(layout)
        began = used(pid)
        work()
        rounds.note(name, used(pid) - began)

    def everything() -> str:
        return openmetrics.text(metrics.families(Host(layout)))

    say(f"{options.count} environments")
    supervisor = make(options.count)
    assert isinstance(supervisor, DaemonSupervisor), "run it where systemd isn't process 1, or with --systemd"
    try:
        bare, bare_all = floor(options.count)
        known = metrics.families(Host(layout))
        services = list(supervisor.observe())
        for _ in range(options.rounds):
            timed("all", everything)
            timed("supervisor", lambda: Host(layout).supervisor.observe(noticed=True))
            timed("text", lambda: openmetrics.text(known))
            timed("floor", bare)
        first = presence.holder(layout)
        os.kill(first, signal.SIGKILL)
        # Once the next supervisor answers, it has taken over the programs; none of them is its child.
        while presence.holder(layout) in (0, first) or len(supervisor._running(services)) < options.count:
            time.sleep(0.1)
        for _ in range(options.rounds):
            timed("adopted", everything)
        os.kill(presence.holder(layout), signal.SIGSTOP)
        while presence.attended(layout):
            time.sleep(0.01)
        for _ in range(options.rounds):
            timed("unwatched", everything)
            timed("whole floor", bare_all)
        os.kill(presence.holder(layout), signal.SIGCONT)
    finally:
        supervisor.purge()
        for place in cgroups("/netspace"):
            for folder in sorted(place.glob("**/"), reverse=True):
                folder.rmdir()
    return rounds, sum(len(one.values) for one in known)


def measure_systemd(options: argparse.Namespace) -> dict[str, Any]:
    """Return the lines of the result on a machine whose process 1 is systemd."""
    from netspace import openmetrics
    from netspace.environment import counters
    from netspace.environment.container import oci_runtime
    from netspace.host import metrics
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.supervision import cgroup
    from netspace.supervision.systemd import unit_file

    rounds = Rounds()
    layout = Layout()

    def timed(name: str, work: Callable[[], object]) -> None:
        began = used(1)
        work()
        rounds.note(name, used(1) - began)

    say(f"{options.count} environments")
    make(options.count)
    places: Any = counters.Reader()._places
    files = []
    for service in [oci_runtime.service_name(f"bench{number}") for number in range(options.count)]:
        pid = Path(pid_file(service)).read_text().strip()
        files += [f"/etc/systemd/system/{unit_file.name(layout, service)}", pid_file(service), f"/proc/{pid}/stat"]
        files += [f"{places[key].folder}{cgroup.payload_cgroup(layout, service)}/{places[key].file}" for key in USE]
    files = [path for path in files if os.path.exists(path)]
    for number in range(options.rounds):
        timed("all", lambda: openmetrics.text(metrics.families(Host(layout))))
        timed("supervisor", lambda: Host(layout).supervisor.observe(noticed=True))
        timed("floor", lambda: read(files))
        if number < 3:
            timed("each", lambda: Host(layout).supervisor.observe())
    middle = rounds.middle
    peer, floor = "seven properties of each unit", middle("floor")
    bare = f"bare reading of {len(files)} files"
    return {
        f"metrics of {options.count} environments under systemd": line(middle("all"), "ms", bare, floor, limit=TARGET),
        "of that, the question to systemd": line(middle("supervisor"), "ms", peer, middle("each")),
    }


def main() -> None:
    parser = bench.arguments(__doc__, rounds=11)
    parser.add_argument("--count", type=int, default=COUNT, help=f"environments (default {COUNT})")
    parser.add_argument("--systemd", action="store_true", help="measure with systemd as process 1")
    options = parser.parse_args()
    if options.systemd:
        bench.on_a_machine_with_systemd()
        bench.tell(measure_systemd(options), options)
        return
    bench.on_a_host_of_its_own()
    rounds, samples = measure(options)
    middle = rounds.middle
    count, read, whole = options.count, middle("floor"), middle("whole floor")
    found = {
        f"metrics of {count} environments": line(
            middle("all"), "ms", "bare reading of the cgroups", read, limit=TARGET
        ),
        "of that, the question to the supervisor": line(
            middle("supervisor"), "ms", "bare reading of the cgroups", read
        ),
        f"of that, the text of {samples} samples": line(middle("text"), "ms", "bare reading of the cgroups", read),
        "the same, the supervisor not a parent": line(middle("adopted"), "ms", "bare reading of the cgroups", read),
        "the same without a supervisor": line(middle("unwatched"), "ms", "bare reading of all files", whole),
    }
    bench.tell(found, options)


if __name__ == "__main__":
    main()
