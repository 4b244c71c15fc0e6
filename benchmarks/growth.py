"""The time of one change on a host with many environments, compared with the same change on an empty host.

usage: sudo python benchmarks/growth.py [--json | --markdown] [--counts N,N] [--rules] [--rounds N] [--profile FOLDER]

It starts a sandbox (``scripts/sandbox``) for each number of other environments. The others are real: each runs a
sleeping static busybox, with an interface of kind veth (with ``--rules`` also ten rules for outgoing packets). They are
made in batches before the measurement. In each round, one more environment is made, found unchanged when only it is
declared, changed while it runs (its memory), changed so that it restarts (a variable), and removed. Each step is a call
of the library with its own ``Host``, as in a state. Only this environment is declared, so the others should have no
effect. The peer of each value is the same step without other environments. The goal is at most 1.3 times the peer's
value. The sandboxes take turns, step by step, so other work on this machine affects all of them alike.

*by hand* -- the same environment is made and removed without netspace (``by_hand.py``) among the same others. This
tells how much of the growth is that of the kernel and of crun, whatever netspace does.

*alone* -- goals for the steps without other environments. *new process* is ``python -m netspace apply`` with nothing to
do, beyond the same call of the library in this process, which has loaded it.

*floor* -- what no change of netspace's own code can save: a Python process that does nothing (*bare Python*), one that
imports msgspec as netspace does, and one that imports all modules which the new process loads, except netspace's own.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say
from by_hand import Environment
from environments import IDLE, image, like

from netspace.environment.user_ids import COUNT

GOAL = 1.3
ALONE = {"create": 60.0, "create cpu": 30.0, "remove": 25.0, "new process cpu": 60.0}
"""Goals in milliseconds for the steps without other environments."""
FLOORS = ("bare Python", "msgspec imported", "the other modules")
BATCH = 100
STEPS = ("create", "unchanged", "change", "restart", "remove")
BY_HAND, NEW_PROCESS = "by hand", "new process"
ALL = (*STEPS, BY_HAND, NEW_PROCESS)


class World:
    """The existing environments, and one that is made and removed."""

    def __init__(self, folder: Path, profiles: str, *, rules: bool) -> None:
        root = image(folder)
        self.one: dict[str, Any] = {"image": f"dir:{root}", "command": IDLE, "interface": {"kind": "veth"}}
        if rules:
            allowed = [{"to": f"192.0.2.{number}/32", "protocol": "tcp", "port": 443} for number in range(10)]
            self.one["interface"] = {"kind": "veth", "allow": allowed}
        self.others = 0
        self.profiles = profiles
        self.apply({"resident": self.one})  # so the supervisor and the image are there, and forwarding stays as it is
        self.hand = self._by_hand(folder)
        self.file = folder / "declared.json"
        self.file.write_text(json.dumps({"netspace": {"environments": {"resident": self.one}}}))

    def _by_hand(self, folder: Path) -> Environment:
        """Return the same environment, to be made without netspace."""
        from netspace.host.host import Host
        from netspace.layout import Layout

        host, layout = Host(Layout()), Layout()
        record = host.environments.recorded()["resident"]
        config = json.loads((layout.bundle("resident") / "config.json").read_bytes())
        mounted = host.environments.store.mountpoint(record.image.digest)
        base = record.base - COUNT  # nobody's
        return Environment(folder, 1, mounted, like(config, folder, 1, base), base)

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

    def measure_by_hand(self, rounds: Rounds) -> None:
        with rounds.timed(f"by hand, create {self.others}"):
            self.hand.make()
            self.hand.start()
        with rounds.timed(f"by hand, remove {self.others}"):
            self.hand.kill()
            self.hand.drop()

    def measure_process(self, rounds: Rounds) -> None:
        """Measure a process of its own that applies a declaration with nothing to do; and the same in this process."""
        from netspace.host.host import Host
        from netspace.layout import Layout
        from netspace.spec import parse

        command = [sys.executable, "-m", "netspace", "apply", str(self.file)]
        with rounds.timed("a new process"):
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": f"{bench.ROOT}/_utils"}
            )
        for name, code in self.floors().items():
            with rounds.timed(name):
                subprocess.run([sys.executable, "-c", code], check=True)
        with rounds.timed("no new process"):
            declared = parse.declaration(json.loads(self.file.read_text())["netspace"])
            for apply in Host(Layout()).each_kind(declared).values():
                assert apply().ok

    @functools.cache  # noqa: B019 (there is one world)
    def floors(self) -> Mapping[str, str]:
        """Return the code of the processes of *floor*, by name."""
        command = [sys.executable, "-X", "importtime", "-m", "netspace", "apply", str(self.file)]
        variables = {**os.environ, "PYTHONPATH": f"{bench.ROOT}/_utils"}
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stderr
        names = [line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")]
        others = [name for name in names[1:] if name.partition(".")[0] != "netspace"]
        # As `python -m netspace` imports it.
        hidden = "import sys; sys.modules['typing_extensions'] = None; from types import SimpleNamespace as System; "
        hidden += "sys.modules['platform'] = System(system=lambda: 'Linux'); "
        each = f"for name in {others!r}:\n try: __import__(name)\n except ImportError: pass"
        every = f"import gc; gc.set_threshold(100_000)\n{hidden}\n{each}\ngc.freeze()"
        return dict(zip(FLOORS, ("pass", f"{hidden}import msgspec", every), strict=True))

    def step(self, step: str, rounds: Rounds) -> None:
        """Measure one step of a round; see ``STEPS``."""
        if step == BY_HAND:
            self.measure_by_hand(rounds)
            return
        if step == NEW_PROCESS:
            self.measure_process(rounds)
            return
        larger = {**self.one, "limits": {"memory": "300M"}}
        declared = {"change": larger, "restart": {**larger, "env": {"A": "B"}}}.get(step, self.one)
        with rounds.timed(f"{step} {self.others}"):
            self._profiled(step, lambda: self.remove("one") if step == "remove" else self.apply({"one": declared}))

    def _profiled(self, step: str, work: Callable[[], None]) -> None:
        if not self.profiles:
            work()
            return
        profile = cProfile.Profile(time.thread_time)  # processor time: on a busy machine, elapsed time says little
        profile.runcall(work)
        profile.dump_stats(os.path.join(self.profiles, f"{step}.{self.others}.prof"))


def _alone(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Return the lines about the steps without other environments."""
    values = {f"{step}{kind}": rounds.middle(f"{step} 0{kind}") for step in STEPS for kind in ("", " cpu")}
    new, same = (rounds.middle(f"{name} process cpu") for name in ("a new", "no new"))
    values["new process cpu"] = new - same
    peers = {f"{step}{kind}": f"by hand, {step} 0{kind}" for step in ("create", "remove") for kind in ("", " cpu")}
    lines = {}
    for key, goal in ALONE.items():
        peer, value = ("the same without", same) if key not in peers else ("by hand", rounds.middle(peers[key]))
        unit = "ms cpu" if key.endswith(" cpu") else "ms"
        lines[f"{key.removesuffix(' cpu')}, {unit.split()[-1]}, alone"] = line(
            values[key], unit, peer, value, limit=goal
        )
    for floor in FLOORS:
        value = rounds.middle(f"{floor} cpu")
        lines[f"new process, cpu, floor: {floor}"] = line(
            value, "ms cpu", "a whole new process", rounds.middle("a new process cpu")
        )
    return lines


def serve(options: argparse.Namespace) -> None:
    """Make the others, and measure the step in each input line; answer each with the values."""
    with bench.disk(in_memory=options.memory_disk) as folder:
        world = World(folder, options.profile, rules=options.rules)
        for step in ALL:  # loads the modules; not recorded
            world.step(step, Rounds())
        world.grow(options.serve)
        print(json.dumps({}), flush=True)
        for step in sys.stdin:
            rounds = Rounds()
            world.step(step.strip(), rounds)
            print(json.dumps(rounds.values), flush=True)
        world.end()


class Sandbox:
    """A sandbox with a number of other environments."""

    def __init__(self, count: int, more: list[str]) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(count), *more]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [str(bench.ROOT / "scripts/sandbox"), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def answer(self, rounds: Rounds) -> None:
        """Wait for the answer to the last order, and note its values."""
        assert self._process.stdout
        said = self._process.stdout.readline()
        if not said:
            sys.exit("a sandbox ended; it has told why above")
        for name, values in json.loads(said).items():
            for value in values:
                rounds.note(name, value)

    def measure(self, step: str, rounds: Rounds) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{step}\n")
        self._process.stdin.flush()
        self.answer(rounds)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(600)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--counts", default="0,100,1000", help="numbers of other environments (default 0,100,1000)")
    parser.add_argument("--rules", action="store_true", help="give each environment ten rules for outgoing packets")
    parser.add_argument("--profile", default="", help="write profiles of the last round into this folder")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options)
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks make namespaces and mounts: run them as root")
    bench.note_load()
    if options.profile:
        os.makedirs(options.profile, exist_ok=True)
    counts = sorted({0, *map(int, options.counts.split(","))})
    more = [word for word, given in (("--rules", options.rules), ("--memory-disk", options.memory_disk)) if given]
    more += ["--profile", os.path.abspath(options.profile)] if options.profile else []
    rounds = Rounds()
    made = {count: Sandbox(count, more) for count in counts}
    try:
        for count, sandbox in made.items():
            say(f"{count} others")
            sandbox.answer(Rounds())
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for step in ALL:
                for sandbox in made.values() if step != NEW_PROCESS else [made[0]]:
                    sandbox.measure(step, rounds)
    finally:
        for sandbox in made.values():
            sandbox.end()
    lines = _alone(rounds)
    for step in (*STEPS, f"{BY_HAND}, create", f"{BY_HAND}, remove"):
        for count in counts[1:]:
            for unit, kind in (("ms", ""), ("ms cpu", " cpu")):
                alone, among = (rounds.middle(f"{step} {one}{kind}") for one in (0, count))
                lines[f"{step}, {unit.split()[-1]}, among {count}"] = line(
                    among, unit, "alone", alone, ratio=GOAL if kind and step in STEPS else None
                )
    bench.tell(lines, options)


if __name__ == "__main__":
    main()
