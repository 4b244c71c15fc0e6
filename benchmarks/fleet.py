"""The time to serve a minion's pillar and to compile a declaration, in fleets of 100, 1,000 and 10,000 environments.

usage: python benchmarks/fleet.py [--json | --markdown] [--counts N,N] [--rounds N]

A fleet has one host per ten environments, and three links per environment. The benchmark needs no root, and writes to
one scratch folder. Salt's own file server and renderers read the file with the declaration. A minion's *slice* is the
part of the declaration that concerns its host. These times are measured, in milliseconds of this process's processor
time:

*compiled* -- one compilation, from the files to the declaration in force. It is done once after each change. The peer
is Salt's renderer alone.

*first* -- the first slice in a process that has imported its modules (a worker of the master). The peer only opens,
reads, and decodes the same slice by ``json``.

*warm* -- another minion's slice in the same process, with the same peer.

*memory* -- the growth of the process's peak memory in kilobytes, by one slice, and by one compilation.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import msgspec
from bench import ROOT, Rounds, line, say

FIRST, WARM = 50.0, 5.0
MEMORY = 64 * 1024
WARM_TURNS = 200


def declare(folder: Path, count: int) -> None:
    """Write a fleet of *count* environments, and the facts that its hosts published."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.fleet.fleets import published

    from netspace.fleet.published import Register

    hosts = max(count // 10, 2)
    lines = ["hosts:"]
    for number in range(hosts):
        lines.append(f"  h{number}: {{address: 10.{number // 250}.{number % 250}.1, labels: {{rack: r{number % 40}}}}}")
    lines.append("environments:")
    image = "image: tar:salt://images/shop.tar, command: [/usr/bin/web, --serve], limits: {memory: 64M, pids: 32}"
    for number in range(count):
        lines.append(f"  e{number}: {{on: h{number % hosts}, {image}}}")
    lines.append("links:")
    for number in range(count):
        for step in (1, 7, hosts + 3):
            lines.append(f"  - {{from: e{number}, to: e{(number + step) % count}, pattern: request, seal: true}}")
    lines.append("never: [{from: e0, to: 192.0.2.0/24}]")
    (folder / "fleet.yaml").write_text("\n".join(lines) + "\n")
    register = Register(folder / "kept/hosts")
    register.folder.mkdir(parents=True)
    for minion, facts in published(f"h{number}" for number in range(hosts)).items():
        register.path(minion).write_bytes(msgspec.json.encode(facts))  # no fsync of a thousand files


def used(work: Callable[[], Any]) -> float:
    """Return the milliseconds of processor time that a call takes."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def worker(folder: Path, what: str) -> dict[str, float]:
    """Measure a compilation, or slices of the declaration in force. Each call runs in a new process."""
    import salt.config
    import salt.fileserver
    import salt.loader
    import salt.template
    import salt.utils.event

    from netspace.plugin import fleet_files

    opts = salt.config.apply_master_config(
        {
            "root_dir": str(folder),
            "cachedir": str(folder / "cache"),
            "file_roots": {"base": [str(folder)]},
            "netspace.fleet": {"folder": str(folder / "kept"), "served": True},
        }
    )

    def declaration() -> Any:
        return fleet_files.declaration(
            opts,
            "salt://fleet.yaml",
            salt.fileserver.Fileserver,
            salt.loader.render,
            salt.template.compile_template,
            salt.utils.event.get_event,
        )

    before = peak()
    if what == "render":
        from netspace.fleet.declaration import FleetDeclaration

        made: FleetDeclaration = declaration()
        return {"render": used(lambda: made._sources.render(str(folder / "fleet.yaml")))}
    if what == "compile":

        def compiled() -> None:
            refusal = declaration().apply()
            assert refusal is None, refusal

        return {"compile": used(compiled), "compile memory": peak() - before}
    found = {"first": used(lambda: declaration().answer("h1"))}
    found["memory"] = peak() - before
    minions = [f"h{number % 10}" for number in range(WARM_TURNS)]
    found["warm"] = used(lambda: [declaration().answer(minion) for minion in minions]) / WARM_TURNS
    path = folder / "slice"
    path.write_text(json.dumps(declaration().answer("h1").pillar))
    found["bare"] = used(lambda: [json.loads(path.read_bytes()) for _ in range(WARM_TURNS)]) / WARM_TURNS
    return found


def measured(folder: Path, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", str(folder), what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(Path(sys.argv[2]), sys.argv[3])))
        return
    parser = bench.arguments(__doc__)
    parser.add_argument("--counts", default="100,1000,10000", help="numbers of environments (default 100,1000,10000)")
    options = parser.parse_args()
    bench.note_load()
    lines: dict[str, dict[str, Any]] = {}
    for count in map(int, options.counts.split(",")):
        rounds = Rounds()
        with tempfile.TemporaryDirectory(prefix="fleet-") as name:
            folder = Path(name)
            declare(folder, count)
            for turn in range(options.rounds):
                say(f"{count} environments, round {turn + 1} of {options.rounds}")
                os.utime(folder / "fleet.yaml")
                for what in ("render", "compile", "slice"):
                    for key, value in measured(folder, what).items():
                        rounds.note(key, value)
        middle = rounds.middle
        lines |= {
            f"compiled, {count}": line(middle("compile"), "ms", "Salt's renderer alone", middle("render")),
            f"first, {count}": line(middle("first"), "ms", "bare reading", middle("bare"), limit=FIRST),
            f"warm, {count}": line(middle("warm"), "ms", "bare reading", middle("bare"), limit=WARM),
            f"memory of slices, {count}": line(middle("memory"), "kB", "nothing", 0.0, limit=MEMORY),
            f"memory of a compilation, {count}": line(middle("compile memory"), "kB", "nothing", 0.0),
        }
    bench.tell(lines, options, "medians of processor time")


if __name__ == "__main__":
    main()
