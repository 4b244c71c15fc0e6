"""The effect of hostile environments on another's round trips and on an apply, compared with the same while they rest.

usage: sudo python benchmarks/neighbours.py [--json | --markdown] [--ways A,B] [--attackers K] [--turns N] [--minutes M]

It starts a sandbox (``scripts/sandbox``) with a real broker and real environments of the demo's image
(``scripts/demo-image``). ``web`` repeatedly sends requests to ``orders``; the result is the 99th percentile of their
times. An apply makes one more environment, with an interface. Meanwhile the environment ``worst`` (with --attackers,
several such environments at once) runs one of these attacks:

*storms* of ``environment/audit/storms.py`` -- eight processes that count, fork, touch memory, write and sync, send, or
make names.

*pools* of ``environment/audit/pools.py`` -- it takes all available units of one pool, repeatedly.

*services* of ``environment/audit/services.py`` -- it troubles the broker or the forwarder.

*output* -- its program writes to its log as fast as possible.

The attackers work and rest in turns of a few seconds: the kernel freezes them. All answers while they work are compared
with all answers while they rest. So other load of the machine affects both, and the ratio is right on a busy machine,
too. The goals: a round trip takes at most twice as long, an apply at most one and a half times as long.

After --minutes no other attack begins. Attacks that were not measured are listed on stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import bench
from bench import line, say

sys.path.insert(0, str(bench.ROOT / "tests"))
GOALS = {"round trip": 2.0, "apply": 1.5}
OUTPUT = "output"
WORK, REST = 3.0, 2.0  # seconds of a turn
BEGINNING = 1.2  # seconds of a turn that don't count: the former one still has an effect
APPLIES = 3  # while they work, and while they rest, in each turn's place
KILLED = 137
SIGNS = "/var/tmp"  # where the attackers and this program signal to each other by files
SOURCES = ("exhaust.py", "pools.py", "storms.py", "services.py", "amqp_frames.py")

# A program that sends requests one after another, and prints when each answer came, and after how many milliseconds.
ASK = """
import time
peer = next(peer for peer in card["peers"] if peer["to"] == "orders")
replies, taken = peer["replies"], []
key = uuid.uuid4().hex
channel.queue_bind(replies["queue"], replies["exchange"], key)
answers = channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=30)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    began = time.monotonic()
    channel.basic_publish(peer["exchange"], "", b"x" * 64,
        pika.BasicProperties(reply_to=replies["exchange"] + "/" + key, message_id=key), mandatory=True)
    if next(answers)[0] is None:
        sys.exit("no answer in 30 s")
    now = time.monotonic()
    taken.append((round(now, 4), round((now - began) * 1000, 3)))
print(json.dumps(taken))
"""
# A program that writes to its log as fast as possible while a certain file exists.
SHOUT = """
import os, time
line = b"x" * 999 + b"\\n"
while True:
    if os.path.exists("/var/tmp/shout"):
        os.write(1, line * 16)
    else:
        time.sleep(0.05)
"""
WORST = """
import json, os, signal, sys, time
for path in ("netspace/environment/audit", "netspace/environment", "netspace"):
    os.makedirs("/tmp/own/" + path, exist_ok=True)
    open("/tmp/own/" + path + "/__init__.py", "w").close()
for name, source in json.load(sys.stdin).items():
    open("/tmp/own/netspace/environment/audit/" + name, "w").write(source)
sys.path.insert(0, "/tmp/own")
from netspace.environment.audit import services
from netspace.environment.audit.exhaust import Program
how, name = sys.argv[1:]
program = Program("/tmp")
# Made before there is no room for it. Who has seen enough removes it: that takes no room.
open("/var/tmp/almost", "w").close()
child = 0
if how == "output":
    open("/var/tmp/shout", "w").close()
elif how == "service":
    child = os.fork()
    if not child:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        services.worst(name)
else:
    program.answer({how: name})
os.rename("/var/tmp/almost", "/var/tmp/ready")
while os.path.exists("/var/tmp/ready"):
    time.sleep(0.05)
    if how == "take":  # not only held: taken
        program.drop()
        program.answer({how: name})
program.drop()
if child:
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
if how == "output":
    os.unlink("/var/tmp/shout")
"""


def ways() -> dict[str, tuple[str, str]]:
    """Return the attacks, by name, each with its method and its name there."""
    from netspace.environment.audit import pools, storms
    from netspace.host import service_exhaustion

    linked = {name: way.program[1] for name, way in service_exhaustion.WAYS.items() if way.linked}
    return {
        OUTPUT: (OUTPUT, OUTPUT),
        **{name: ("storm", name) for name in storms.STORMS},
        **{name: ("service", way) for name, way in linked.items()},
        **{name: ("take", name) for name in pools.POOLS},
    }


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


class World:
    """Environments, a broker, and the measured times."""

    def __init__(self, attackers: int) -> None:
        from support.hosts.whole_host import CLIENT, IMAGE, SERVE, python

        from netspace.host.host import Host
        from netspace.layout import Layout

        assert IMAGE.exists(), f"{IMAGE} is missing: scripts/demo-image makes it"
        self.host = Host(Layout())
        self.ask = CLIENT + ASK
        self.attackers = [f"worst-{number}" for number in range(attackers)]
        limits = {"memory": "128M", "cpus": 1, "pids": 128}
        common = {"image": f"tar:{IMAGE}", "limits": limits, "stop_timeout": 1, "interface": {"kind": "veth"}}
        worst = {**common, "command": python(SHOUT), "limits": {**limits, "disk": "64M", "files": 1024}}
        self.extra = {**common, "command": python("import signal; signal.pause()")}
        self.apply(
            {
                "orders": {**common, "command": python(SERVE)},
                "web": self.extra,
                "sink": self.extra,
                **dict.fromkeys(self.attackers, worst),
            },
            [{"from": one, "to": to, "pattern": "request"} for one, to in self._links()],
        )

    def _links(self) -> list[tuple[str, str]]:
        return [("web", "orders"), *((one, "sink") for one in self.attackers)]

    def apply(self, environments: dict[str, Any], links: list[dict[str, str]] | None = None) -> None:
        from netspace.spec import parse

        declared = parse.declaration({"environments": environments, "links": links or []})
        for converge in (self.host.converge_interfaces, self.host.converge_links, self.host.converge_environments):
            if links is None and converge == self.host.converge_links:
                continue
            result = converge(declared)
            assert result.ok, result.failures

    def _run(self, name: str, script: str, *arguments: str, stdin: str = "") -> dict[str, Any]:
        command = ["/usr/bin/python3", "-c", script, *arguments]
        done: dict[str, Any] = self.host.operations.exec(name, command, timeout=600, stdin=stdin)
        assert done["retcode"] in (0, KILLED), (name, done["stdout"][-300:], done["stderr"][-600:])
        return done

    def freeze(self, frozen: bool) -> None:
        """Stop all programs of the attackers, or let them go on."""
        from netspace.environment.container.oci_runtime import service_name
        from netspace.supervision.cgroup import payload_cgroup

        for name in self.attackers:
            group = payload_cgroup(self.host.layout, service_name(name))
            unified = Path(f"/sys/fs/cgroup{group}/cgroup.freeze")
            if unified.exists():
                unified.write_text(str(int(frozen)))
            else:
                Path(f"/sys/fs/cgroup/freezer{group}/freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def answers(self, turns: int) -> dict[bool, list[float]]:
        """Return the milliseconds of answers while the attackers rest (False) and while they work (True)."""
        told: list[str] = []
        seconds = turns * (WORK + REST) + 3

        def ask() -> None:
            told.append(self._run("web", self.ask, str(seconds))["stdout"])

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(1.5)
        spans: list[tuple[float, float, bool]] = []
        for _ in range(turns):
            for working, length in ((False, REST), (True, WORK)):
                self.freeze(not working)
                began = time.monotonic()
                time.sleep(length)
                spans.append((began + BEGINNING, time.monotonic(), working))
        self.freeze(True)
        asking.join()
        found: dict[bool, list[float]] = {False: [], True: []}
        for at, taken in json.loads(told[0]):
            for first, last, working in spans:
                if first <= at - taken / 1000 <= last:
                    found[working].append(taken)
        return found

    def applies(self, turns: int) -> dict[bool, list[float]]:
        """Return the milliseconds of applies, likewise."""
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(turns):
            for working in (False, True):
                self.freeze(not working)
                time.sleep(BEGINNING)
                for _ in range(APPLIES):
                    began = time.perf_counter()
                    self.apply({"extra": self.extra})
                    found[working].append((time.perf_counter() - began) * 1000)
                    result = self.host.remove_environments(["extra"])
                    assert result.ok, result.failures
        return found

    @contextlib.contextmanager
    def at_worst(self, how: str, way: str) -> Iterator[None]:
        """Run an attack in all attackers for the duration of the context."""
        failed: list[BaseException] = []
        over = threading.Event()
        signs = {one: Path(self.host.layout.bundle(one)) / "rootfs" / SIGNS[1:] for one in self.attackers}

        def work(name: str) -> None:
            try:
                while self._run(name, WORST, how, way, stdin=_programs())["retcode"] == KILLED and not over.is_set():
                    say(f"{way}: {name} was killed; starting it again")
            except BaseException as err:
                failed.append(err)

        threads = {name: threading.Thread(target=work, args=(name,)) for name in self.attackers}
        for thread in threads.values():
            thread.start()
        try:
            for name, thread in threads.items():
                while not (signs[name] / "ready").exists() and thread.is_alive():
                    thread.join(0.1)
            yield
        finally:
            over.set()
            self.freeze(False)
            for sign in signs.values():
                (sign / "ready").unlink(missing_ok=True)
            for thread in threads.values():
                thread.join()
        if failed:
            raise failed[0]


def _programs() -> str:
    """Return the programs that take resources, by file name, as JSON."""
    import netspace

    folder = Path(netspace.__file__).parent / "environment" / "audit"
    return json.dumps({name: (folder / name).read_text() for name in SOURCES})


def main() -> None:
    parser = bench.arguments(__doc__, rounds=1)
    parser.add_argument("--ways", default="", help="attacks to measure, separated by commas (default: all)")
    parser.add_argument("--attackers", type=int, default=1, help="environments that attack together (default 1)")
    parser.add_argument("--turns", type=int, default=4, help="turns of work and rest for each attack (default 4)")
    parser.add_argument(
        "--minutes", type=float, default=40.0, help="begin no attack after so many minutes (default 40)"
    )
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    every = ways()
    wanted = options.ways.split(",") if options.ways else list(every)
    until = time.monotonic() + 60 * options.minutes
    lines: dict[str, Any] = {}
    with bench.disk(in_memory=options.memory_disk):
        world = World(options.attackers)
        try:
            for way in wanted:
                # At least the first attack is measured, even if the preparation took all the minutes.
                if time.monotonic() >= until and lines:
                    continue
                with world.at_worst(*every[way]):
                    answers, applies = world.answers(options.turns), world.applies(options.turns)
                for what, meanwhile, alone in (
                    ("round trip", percentile(answers[True], 0.99), percentile(answers[False], 0.99)),
                    ("apply", median(applies[True]), median(applies[False])),
                ):
                    lines[f"{what}, {way}"] = line(meanwhile, "ms", "at rest", alone, ratio=GOALS[what])
                    middle = f"medians {percentile(answers[False], 0.5):.2f}, {percentile(answers[True], 0.5):.2f} ms"
                    number = f"{len(answers[False])} and {len(answers[True])} answers, {middle}"
                    say(f"{what}, {way}: {alone:.2f} -> {meanwhile:.2f} ms, x{meanwhile / alone:.2f} ({number})")
        finally:
            world.host.teardown()
    if left := [way for way in wanted if f"apply, {way}" not in lines]:
        say(f"not measured within {options.minutes:g} minutes: {', '.join(left)}")
    bench.tell(lines, options)


if __name__ == "__main__":
    main()
