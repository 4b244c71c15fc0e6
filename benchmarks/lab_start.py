"""The time of ``scripts/lab up``, until all minions answer, for labs of namespaces.

usage: sudo python benchmarks/lab_start.py [--json] [--rounds N] [--hosts N...]

The peer is the time of one ``salt-call --local test.ping``, which loads Salt once: each host of a lab loads it at least
once, too. Processor time counts all hosts and their master; it is the same on a machine that is busy with other work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
from bench import Rounds, line, say

LAB = bench.ROOT / "scripts/lab"
BOUNDS = {3: 60.0, 10: 180.0}
"""The longest time for this number of hosts, in seconds."""


def measure(rounds: Rounds, hosts: int, folder: Path) -> None:
    environment = {**os.environ, "NETSPACE_LAB": str(folder / "lab")}

    def lab(*arguments: str) -> None:
        done = subprocess.run([LAB, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"lab {' '.join(arguments)}: {done.stdout}{done.stderr}")

    say(f"{hosts} hosts")
    try:
        with rounds.timed(f"up {hosts}"):
            lab("up", "--hosts", str(hosts))
    finally:
        lab("down")


def ping(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("salt-call")), "--local", f"--config-dir={folder}", "test.ping"]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = bench.arguments(__doc__, rounds=1)
    parser.add_argument("--hosts", type=int, nargs="+", default=[3, 10], metavar="N", help="sizes of labs (3 10)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    rounds = Rounds()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "minion").write_text(f"root_dir: {folder}\nlog_file: {folder}/log\nid: alone\n")
        for _ in range(options.rounds):
            rounds.time("ping", lambda: ping(folder))
            for hosts in options.hosts:
                measure(rounds, hosts, folder)
    seconds = {key: rounds.middle(key) / 1000 for key in rounds.values}
    lines = {}
    for hosts in options.hosts:
        up, bound = f"up {hosts}", BOUNDS.get(hosts)
        lines[f"{hosts} hosts are up"] = line(seconds[up], "s", "salt-call", seconds["ping"], limit=bound)
        lines[f"{hosts} hosts, processor time"] = line(seconds[f"{up} cpu"], "s", "salt-call", seconds["ping cpu"])
    bench.tell(lines, options)


if __name__ == "__main__":
    main()
