"""Environments of netspace compared with containers of podman, docker and incus, each in its own sandbox, in turn.

usage: sudo python benchmarks/peers.py [--json] [--engines A,B] [--counts N,N] [--rounds N] [--plot FILE]

Each engine runs in a separate process in ``scripts/sandbox``, with its own network, mounts, processes and control
groups, an image of a static busybox, and files on disk. This process sends orders to all of them, one after the other,
so that all have the same load. Processor time includes everything in the engine's sandbox, also its servers. These
figures are compared:

*run* -- make a container with a network that runs ``true``, wait until it ends, and remove it.

*create*, *remove* -- one more container on a host with N others. Each has a network and ten published ports.

*reload* -- the firewall is reloaded on a host with N containers. Podman has a command for this. netspace's table is
deleted, and an apply makes it again. Docker and incus have no command.

*memory*, *idle* -- the memory of each of 100 idle containers (anonymous, kernel and shared memory of the whole
sandbox), and the processor time of all 100 in ten seconds.

*forwarder*, *broker* -- netspace alone: processor time and memory of each while one environment sends messages to
another at a fixed rate, converted to 1,000 messages a second. Service meshes publish the cost of their sidecars in
these units.

netspace is measured as a Salt state calls it: in a process that has its modules loaded. ``netspace (new process)`` is
the same by a new Python process for each call, like a call of ``podman`` or ``docker``. An engine that is missing here,
or doesn't work, is left out, with the reason. ``--plot`` draws *create*, and needs matplotlib: ``pip install
'netspace[benchmarks]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
import engines
from bench import Rounds, say
from environments import image, settled

PORTS = 10
FIRST_PORT = 20000
IDLE_COUNT, IDLE_SECONDS = 100, 10.0
PACE, PACE_SECONDS = 400, 10.0
NETSPACE, NEW_PROCESS = "netspace", "netspace (new process)"
STEPS = ("create", "remove", "reload")
STEP_SECONDS = 7200


def ports(number: int) -> list[int]:
    """Return the published ports of the container with this number."""
    return [FIRST_PORT + PORTS * number + one for one in range(PORTS)]


# -- netspace as one of the engines ---------------------------------------------------------
class Netspace(engines.Engine):
    """netspace by its library, in this process."""

    name = NETSPACE

    def prepare(self) -> None:
        self._apply({"resident": self._one([])})

    def _one(self, published: Sequence[int], command: str = f"/{engines.PROGRAM}") -> dict[str, Any]:
        told = {"publish": [f"{port}:{port}" for port in published]} if published else {}
        return {
            "image": f"dir:{self.root}",
            "command": [command],
            "restart": "on-failure",
            "interface": {"kind": "veth", **told},
        }

    def _apply(self, environments: Mapping[str, Any]) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout
        from netspace.spec import parse

        result = Host(Layout()).converge_environments(parse.declaration({"environments": environments}))
        if not result.ok:
            raise engines.Missing(f"netspace: {next(iter(result.failures))}")

    def once(self, network: str) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout

        self._apply({"once": self._one([], "/bin/true")})
        while Host(Layout()).environments.list()["once"]["state"] == "running":
            time.sleep(0.002)
        self.remove("once")

    def create(self, name: str, number: int, ports: Sequence[int]) -> None:
        self._apply({name: self._one(ports)})

    def remove(self, name: str) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout

        result = Host(Layout()).remove_environments([name])
        if not result.ok:
            raise engines.Missing(f"netspace: {next(iter(result.failures))}")

    def reload(self) -> bool:
        from netspace.host.host import Host
        from netspace.layout import Layout
        from netspace.spec import parse

        engines.run(["nft", "delete", "table", "inet", "netspace"])
        declared = {"resident": self._one([])}
        result = Host(Layout()).converge_interfaces(parse.declaration({"environments": declared}))
        if not result.ok:
            raise engines.Missing(f"netspace: {next(iter(result.failures))}")
        return True

    def stop(self) -> None:
        from netspace.host.host import Host
        from netspace.layout import Layout

        Host(Layout()).teardown()


class NewProcess(Netspace):
    """netspace, with a new Python process for each call."""

    name = NEW_PROCESS

    def _again(self, *words: str) -> None:
        engines.run([sys.executable, __file__, "--call", json.dumps([str(self.root), *words])])

    def _apply(self, environments: Mapping[str, Any]) -> None:
        self._again("_apply", json.dumps(environments))

    def remove(self, name: str) -> None:
        self._again("remove", json.dumps(name))

    def reload(self) -> bool:
        self._again("reload")
        return True


def call(words: Sequence[str]) -> None:
    """Make one call of :class:`Netspace` in this process."""
    root, method, *arguments = words
    getattr(Netspace(Path("/nowhere"), Path(root)), method)(*map(json.loads, arguments))


ENGINES: Mapping[str, type[engines.Engine]] = {NETSPACE: Netspace, NEW_PROCESS: NewProcess, **engines.ENGINES}


# -- what a sandbox does when it is told to --------------------------------------------------
class Served:
    """An engine in this sandbox that executes the orders from its standard input."""

    def __init__(self, engine: engines.Engine) -> None:
        self.engine = engine
        self.count = 0

    def grow(self, count: int) -> None:
        for number in range(self.count, count):
            self.engine.create(f"other{number}", number + 1, ports(number + 1))
        self.count = max(count, self.count)

    def step(self, what: str) -> dict[str, float]:
        """Measure one step; return an empty result if the engine can't do it."""
        work: Callable[[], Any] = {
            "run": lambda: self.engine.once("bridge"),
            "create": lambda: self.engine.create("one", 0, ports(0)),
            "remove": lambda: self.engine.remove("one"),
            "reload": self.engine.reload,
        }[what]
        begun, used = time.perf_counter(), bench.processor()
        if work() is False:
            return {}
        return {"ms": (time.perf_counter() - begun) * 1000, "cpu": bench.processor() - used}

    def memory(self) -> dict[str, float]:
        return {"kB": settled()}

    def idle(self) -> dict[str, float]:
        used = bench.processor()
        time.sleep(IDLE_SECONDS)
        return {"percent": (bench.processor() - used) / IDLE_SECONDS / 10}

    def messages(self) -> dict[str, Any]:
        return {} if type(self.engine) is not Netspace else messages(self.engine.folder)


def serve(name: str) -> None:
    """Execute the order in each input line, and answer each with a line."""
    with bench.disk(in_memory=False) as folder:
        root = image(folder)
        engines.add_program(root)
        engine = ENGINES[name](folder, root)
        served = Served(engine)
        try:
            engine.start()
            print(json.dumps({}), flush=True)
            for order in sys.stdin:
                method, *arguments = json.loads(order)
                print(json.dumps(getattr(served, method)(*arguments) or {}), flush=True)
        except engines.Missing as err:
            print(json.dumps({"missing": str(err)}), flush=True)
        finally:
            engine.stop()


class Sandbox:
    """An engine in a separate sandbox.

    :raises Missing: from each method, when the engine can't go on.
    """

    def __init__(self, name: str) -> None:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [str(bench.ROOT / "scripts/sandbox"), sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def tell(self, method: str, *arguments: Any) -> None:
        """Begin a call of a method of :class:`Served`, without waiting for its end."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        said = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(said) if said else {"missing": "it ended"}
        if "missing" in found:
            raise engines.Missing(found["missing"])
        return found

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        self.tell(method, *arguments)
        return self.answer()

    def end(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(600)


# -- messages ---------------------------------------------------------------------------------
def messages(folder: Path) -> dict[str, Any]:
    """Return the processor time and memory of the forwarder and the broker at 1,000 messages a second."""
    import asyncio

    from link_client import BODY, _programs
    from links import Host as Linked

    host = Linked(2, folder)
    host.namespaces()
    host.converge([link for link in host.declared() if link.source != link.target][:1])
    sent = int(PACE * PACE_SECONDS)

    async def pour(mailbox: Any, peer: str) -> None:
        begun = time.perf_counter()
        going: set[asyncio.Task[Any]] = set()
        for number in range(sent):
            await asyncio.sleep(max(0.0, begun + number / PACE - time.perf_counter()))
            task = asyncio.create_task(mailbox.send(peer, BODY, timeout=60))
            going.add(task)
            task.add_done_callback(going.discard)
        await asyncio.gather(*going)

    async def drain(mailbox: Any) -> None:
        for _ in range(sent):
            await (await mailbox.receive(timeout=60)).ack()

    try:
        with _programs(host.links, host.names, folder) as (first, second):
            draining = second.begin(drain(second.mailbox))
            before, begun = _used(), time.perf_counter()
            first.run(pour(first.mailbox, host.names[1]))
            draining.result(120)
            took, after = time.perf_counter() - begun, _used()
    finally:
        host.remove()
    each = took * 1000 / sent  # seconds for 1,000 messages
    return {
        name: {"cores": (after[name][0] - before[name][0]) / took * each, "MB": after[name][1]}
        for name in ("forwarder", "broker")
    }


def _used() -> dict[str, tuple[float, float]]:
    """Return the processor time (s) and the memory (PSS, MB) of the forwarder and of the broker."""
    found = {"forwarder": (0.0, 0.0), "broker": (0.0, 0.0)}
    programs = {"haproxy": "forwarder", "beam.smp": "broker"}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            name = programs.get((process / "comm").read_text().strip()) if process.name.isdigit() else None
            if name is not None:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                pss = next(row for row in (process / "smaps_rollup").read_text().splitlines() if row.startswith("Pss:"))
                before = found[name]
                found[name] = before[0] + seconds, before[1] + int(pss.split()[1]) / 1024
    return found


# -- all of it ----------------------------------------------------------------------------------
@contextlib.contextmanager
def sandboxes(names: Sequence[str]) -> Iterator[dict[str, Sandbox]]:
    """Yield the sandboxes of the engines that work here."""
    made = {name: Sandbox(name) for name in names}
    try:
        for name, sandbox in list(made.items()):
            with _left_out(made, name):
                sandbox.answer()
        yield made
    finally:
        for sandbox in made.values():
            sandbox.end()


@contextlib.contextmanager
def _left_out(made: dict[str, Sandbox], name: str) -> Iterator[None]:
    """Drop an engine from the remaining measurements if the engine fails."""
    try:
        yield
    except engines.Missing as err:
        say(f"left out from here on: {name}: {err}")
        made.pop(name).end()


def measure(options: argparse.Namespace, made: dict[str, Sandbox], rounds: Rounds) -> None:
    counts = [int(one) for one in options.counts.split(",")]

    def step(what: str, key: str, *, kept: bool = True) -> None:
        for name, sandbox in list(made.items()):
            with _left_out(made, name):
                for unit, value in sandbox.ask("step", what).items():
                    if kept:
                        rounds.note(f"{key} {name} {unit}", value)

    def each(method: str) -> dict[str, dict[str, Any]]:
        found = {}
        for name, sandbox in list(made.items()):
            with _left_out(made, name):
                found[name] = sandbox.ask(method)
        return found

    say("warming up: one container of each engine")
    for what in ("run", "create", "remove"):
        step(what, what, kept=False)
    before = each("memory")
    for number in range(options.rounds):
        say(f"made, run and removed: round {number + 1} of {options.rounds}")
        step("run", "run")
    for count in sorted(counts):
        say(f"{count} others, all engines at once")
        for sandbox in made.values():
            sandbox.tell("grow", count)
        for name, sandbox in list(made.items()):
            with _left_out(made, name):
                sandbox.answer()
        for number in range(options.rounds):
            say(f"among {count}: round {number + 1} of {options.rounds}")
            step("create", f"create {count}")
            step("remove", f"remove {count}")
        if count:
            say(f"among {count}: the firewall made anew")
            step("reload", f"reload {count}")
        if count == IDLE_COUNT:
            say("memory and idle processor time")
            for name, used in each("memory").items():
                rounds.note(f"memory {name} kB", (used["kB"] - before[name]["kB"]) / count)
            for name, used in each("idle").items():
                rounds.note(f"idle {name} %", used["percent"])
    if NETSPACE in made:
        say("messages")
        with _left_out(made, NETSPACE):
            for name, used in made[NETSPACE].ask("messages").items():
                for unit, value in used.items():
                    rounds.note(f"{name} {NETSPACE} {unit}", value)


def rows(rounds: Rounds, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians, nested by measurement, engine and unit."""
    counts = sorted(int(one) for one in options.counts.split(","))
    keys: dict[str, tuple[str, tuple[str, ...]]] = {"run": ("made, run and removed", ("ms", "cpu"))}
    keys |= {f"{step} {count}": (f"{step} among {count}", ("ms", "cpu")) for step in STEPS for count in counts}
    keys |= {"memory": (f"memory of each of {IDLE_COUNT}", ("kB",)), "idle": (f"{IDLE_COUNT} idle", ("%",))}
    keys |= {"forwarder": ("forwarder, 1,000 messages/s", ("cores", "MB"))}
    keys |= {"broker": ("broker, 1,000 messages/s", ("cores", "MB"))}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, (words, units) in keys.items():
        for name in ENGINES:
            values = {unit: rounds.middle(f"{key} {name} {unit}") for unit in units if f"{key} {name} {unit}" in rounds}
            if values:
                found.setdefault(words, {})[name] = {unit: round(value, 3) for unit, value in values.items()}
    return found


def tell(found: Mapping[str, Mapping[str, Mapping[str, float]]], options: argparse.Namespace) -> None:
    """Print a row for each measurement, with a column for each engine and netspace's ratio to the best peer."""
    if options.json:
        print(json.dumps(found, indent=1))
        return
    names = [name for name in ENGINES if any(name in cells for cells in found.values())]
    print(f"{bench.machine()}; load {os.environ[bench.LOAD]} before, {os.getloadavg()[0]:.1f} after; medians.\n")
    print(f"| | {' | '.join(names)} | netspace to the best peer |")
    print("|---" * (len(names) + 2) + "|")
    for words, cells in found.items():
        told = [
            " / ".join(f"{bench.figure(value, unit)}" for unit, value in cells.get(name, {}).items()) for name in names
        ]
        print(f"| {words} | {' | '.join(told)} | {_ratios(cells)} |")


def _ratios(cells: Mapping[str, Mapping[str, float]]) -> str:
    """Return netspace's value divided by the best peer's, for each unit."""
    found: list[str] = []
    for unit, value in cells.get(NETSPACE, {}).items():
        others = [cells[name][unit] for name in engines.ENGINES if unit in cells.get(name, {})]
        if best := min(others, default=0.0):
            found.append(f"{value / best:.2f}")
    return " / ".join(found)


def plot(rounds: Rounds, options: argparse.Namespace) -> None:
    """Draw the elapsed time and the processor time to create one more container."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        say("no plot: matplotlib is missing; pip install 'netspace[benchmarks]'")
        return
    matplotlib.rcParams.update({"svg.hashsalt": "netspace", "svg.fonttype": "none", "font.size": 9})
    counts = sorted(int(one) for one in options.counts.split(","))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, unit, title in zip(axes, ("ms", "cpu"), ("by the clock", "processor time"), strict=True):
        for name in ENGINES:
            known = [count for count in counts if f"create {count} {name} {unit}" in rounds]
            values = [rounds.middle(f"create {count} {name} {unit}") for count in known]
            if known:
                axis.plot(known, values, marker="o", markersize=3, label=name)
        axis.set(title=f"One more among N: {title}", xlabel="N others", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(options.plot, metadata={"Date": None})
    say(f"{options.plot}: drawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds (default 7); the result has medians")
    parser.add_argument("--engines", default=",".join(ENGINES), help="engines, separated by commas (default: all)")
    parser.add_argument("--counts", default="0,50,100,200", help="numbers of other containers (default 0,50,100,200)")
    parser.add_argument("--plot", default="", metavar="FILE", help="draw the time to create one more container, as SVG")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--call", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.call:
        call(json.loads(options.call))
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks make namespaces and mounts: run them as root")
    bench.note_load()
    wanted = options.engines.split(",")
    unknown = set(wanted) - set(ENGINES)
    if unknown:
        sys.exit(f"--engines: {', '.join(sorted(unknown))}: unknown; there are {', '.join(ENGINES)}")
    rounds = Rounds()
    with sandboxes(wanted) as made:
        measure(options, made, rounds)
    if options.plot:
        plot(rounds, options)
    tell(rows(rounds, options), options)


if __name__ == "__main__":
    main()
