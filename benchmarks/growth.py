"""The time of one change on a host with many environments, compared with the same change on an empty host.

usage: sudo python benchmarks/growth.py [--json | --markdown] [--counts N,N] [--rules] [--rounds N] [--profile FOLDER]

It starts a sandbox (``scripts/sandbox``). The other environments are real: each runs a sleeping static busybox, with an
interface of kind veth (with ``--rules`` also ten rules for outgoing packets). They are made in batches before the
measurement. In each round, one more environment is made, found unchanged when only it is declared, changed while it
runs (its memory), changed so that it restarts (a variable), and removed. Each step is a call of the library with its
own ``Host``, as in a state. Only this environment is declared, so the others should have no effect. The peer of each
value is the same step without other environments. The goal is at most 1.3 times the peer's value.
"""

from __future__ import annotations

import cProfile
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say
from environments import IDLE, image

GOAL = 1.3
BATCH = 100
STEPS = ("create", "unchanged", "change", "restart", "remove")


class World:
    """The existing environments, and one that is made and removed."""

    def __init__(self, root: Path, profiles: str, *, rules: bool) -> None:
        self.one: dict[str, Any] = {"image": f"dir:{root}", "command": IDLE, "interface": {"kind": "veth"}}
        if rules:
            allowed = [{"to": f"192.0.2.{number}/32", "protocol": "tcp", "port": 443} for number in range(10)]
            self.one["interface"] = {"kind": "veth", "allow": allowed}
        self.others = 0
        self.profiles = profiles
        self.apply({"resident": self.one})  # so the supervisor and the image are there, and forwarding stays as it is

    def apply(self, environments: Mapping[str, Any]) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout
        from netspace.spec import parse

        result = Host(Layout()).converge_environments(parse.declaration({"environments": environments}))
        assert result.ok, next(iter(result.failures))

    def remove(self, name: str) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout

        result = Host(Layout()).remove_environments([name])
        assert result.ok, next(iter(result.failures))

    def end(self) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout

        result = Host(Layout()).teardown()
        assert result.ok, next(iter(result.failures))

    def grow(self, count: int) -> None:
        """Make other environments until *count* of them exist."""
        for start in range(self.others, count, BATCH):
            self.apply({f"other{number}": self.one for number in range(start, min(start + BATCH, count))})
        self.others = count

    def measure(self, rounds: Rounds) -> None:
        larger = {**self.one, "limits": {"memory": "300M"}}
        other = {**larger, "env": {"A": "B"}}
        for step, work in {
            "create": lambda: self.apply({"one": self.one}),
            "unchanged": lambda: self.apply({"one": self.one}),
            "change": lambda: self.apply({"one": larger}),
            "restart": lambda: self.apply({"one": other}),
            "remove": lambda: self.remove("one"),
        }.items():
            with rounds.timed(f"{step} {self.others}"):
                self._profiled(step, work)

    def _profiled(self, step: str, work: Callable[[], None]) -> None:
        if not self.profiles:
            work()
            return
        profile = cProfile.Profile(time.thread_time)  # on a busy machine, time by the clock tells nothing
        profile.runcall(work)
        profile.dump_stats(os.path.join(self.profiles, f"{step}.{self.others}.prof"))


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--counts", default="0,100,1000", help="how many others there are (default 0,100,1000)")
    parser.add_argument("--rules", action="store_true", help="the others and the one have ten rules each")
    parser.add_argument(
        "--profile", default="", help="put profiles of the last round of each into this folder, which is made"
    )
    options = parser.parse_args()
    if options.profile:
        os.makedirs(options.profile, exist_ok=True)
    bench.on_a_host_of_its_own()
    counts = sorted({0, *map(int, options.counts.split(","))})
    rounds = Rounds()
    with bench.disk(in_memory=options.memory_disk) as folder:
        world = World(image(folder), options.profile, rules=options.rules)
        world.measure(Rounds())  # modules are loaded
        for count in counts:
            world.grow(count)
            for number in range(options.rounds):
                say(f"among {count}: round {number + 1} of {options.rounds}")
                world.measure(rounds)
        lines = {}
        for step in STEPS:
            for count in counts[1:]:
                for unit, kind in (("ms", ""), ("ms cpu", " cpu")):
                    alone, among = (rounds.middle(f"{step} {one}{kind}") for one in (0, count))
                    lines[f"{step}, {unit.split()[-1]}, among {count}"] = line(
                        among, unit, "alone", alone, ratio=GOAL if kind else None
                    )
        world.end()
    bench.tell(lines, options)


if __name__ == "__main__":
    main()
