"""The effect of one hostile environment on another's round trips and on an apply, compared with a quiet host.

usage: sudo python benchmarks/neighbours.py [--json | --markdown] [--minutes M] [--ways A,B] [--rounds N] [--messages N]

It starts a sandbox (``scripts/sandbox``) with a real broker and real environments of the demo's image
(``scripts/demo-image``). ``web`` repeatedly sends requests to ``orders``; the result is the 99th percentile of a round.
An apply makes one more environment, with an interface. Meanwhile the environment ``worst`` runs one of these attacks:

*storms* of ``environment/audit/storms.py`` -- eight processes that count, fork, touch memory, write and sync, send, or
make names.

*pools* of ``environment/audit/pools.py`` -- it takes all available units of one pool, repeatedly, and then keeps them.

*output* -- its program writes to its log as fast as possible.

Each value is measured right after the same value on the quiet host, so that other load affects both. The goals: a round
trip takes at most twice as long, an apply at most one and a half times as long.

The benchmark ends after --minutes. In each round, the output and the storms come first, because they have the largest
effect. As many pools follow as the time allows. Attacks that were not measured are listed on stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say

sys.path.insert(0, str(bench.ROOT / "tests"))
GOALS = {"round trip": 2.0, "apply": 1.5}
OUTPUT = "output"
SECONDS = 60  # longest duration of one attack
KILLED = 137
SIGNS = "/var/tmp"  # where the environment and this program signal to each other by files

# A program that sends requests one after another, and prints the milliseconds to each answer.
ASK = """
import time
peer = next(peer for peer in card["peers"] if peer["to"] == "orders")
replies, taken = peer["replies"], []
key = uuid.uuid4().hex
channel.queue_bind(replies["queue"], replies["exchange"], key)
answers = channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=30)
for number in range(int(sys.argv[1])):
    began = time.perf_counter()
    channel.basic_publish(peer["exchange"], "", b"x" * 64,
        pika.BasicProperties(reply_to=replies["exchange"] + "/" + key, message_id=key), mandatory=True)
    if next(answers)[0] is None:
        sys.exit("no answer in 30 s")
    taken.append((time.perf_counter() - began) * 1000)
print(json.dumps(taken[len(taken) // 10:]))
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
import json, os, sys, time
for path in ("netspace/environment/audit", "netspace/environment", "netspace"):
    os.makedirs("/tmp/own/" + path, exist_ok=True)
    open("/tmp/own/" + path + "/__init__.py", "w").close()
for name, source in json.load(sys.stdin).items():
    open("/tmp/own/netspace/environment/audit/" + name, "w").write(source)
sys.path.insert(0, "/tmp/own")
from netspace.environment.audit.exhaust import Program
way, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
program, end = Program("/tmp"), time.monotonic() + seconds
# Made before there is no room for it. Who has seen enough removes it: that takes no room.
open("/var/tmp/almost", "w").close()
if way == "output":
    open("/var/tmp/shout", "w").close()
else:
    program.answer({way: name})
os.rename("/var/tmp/almost", "/var/tmp/ready")
while time.monotonic() < end and os.path.exists("/var/tmp/ready"):
    time.sleep(0.05)
    if way == "take":  # not only held: taken
        program.drop()
        program.answer({way: name})
program.drop()
if way == "output":
    os.unlink("/var/tmp/shout")
"""


def ways() -> dict[str, str]:
    """Return the attacks, by name, each with its method."""
    from netspace.environment.audit import pools, storms

    return {OUTPUT: OUTPUT, **dict.fromkeys(storms.STORMS, "storm"), **dict.fromkeys(pools.POOLS, "take")}


class World:
    """Three environments, a broker, and the measured times."""

    def __init__(self, messages: int) -> None:
        from support.hosts.whole_host import CLIENT, IMAGE, SERVE, python

        from netspace.host.host import Host
        from netspace.layout import Layout

        assert IMAGE.exists(), f"{IMAGE} is missing: scripts/demo-image makes it"
        self.host = Host(Layout())
        self.ask = CLIENT + ASK
        self.messages = messages
        limits = {"memory": "128M", "cpus": 1, "pids": 128}
        common = {"image": f"tar:{IMAGE}", "limits": limits, "stop_timeout": 1, "interface": {"kind": "veth"}}
        self.extra = {**common, "command": python("import signal; signal.pause()")}
        self.apply(
            {
                "orders": {**common, "command": python(SERVE)},
                "web": self.extra,
                "worst": {
                    **common,
                    "command": python(SHOUT),
                    "limits": {**limits, "disk": "64M", "files": 1024},
                },
            },
            [{"from": "web", "to": "orders", "pattern": "request"}],
        )

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
        done: dict[str, Any] = self.host.operations.exec(name, command, timeout=2 * SECONDS, stdin=stdin)
        assert done["retcode"] in (0, KILLED), (name, done["stdout"][-300:], done["stderr"][-600:])
        return done

    def _did(self, *what: str, stdin: str = "") -> bool:
        """Run a script; return whether it succeeded, without being killed."""
        return bool(self._run(*what, stdin=stdin)["retcode"] == 0)

    def round_trip(self) -> float:
        """Return the 99th percentile of a round of answers, in milliseconds."""
        taken = sorted(json.loads(self._run("web", self.ask, str(self.messages))["stdout"]))
        return float(taken[int(len(taken) * 0.99)])

    def measure(self, rounds: Rounds, name: str) -> None:
        rounds.note(f"round trip {name}", self.round_trip())
        with rounds.timed(f"apply {name}"):
            self.apply({"extra": self.extra})
        result = self.host.remove_environments(["extra"])
        assert result.ok, result.failures

    @contextlib.contextmanager
    def at_worst(self, way: str, how: str) -> Iterator[None]:
        """Run an attack in the environment ``worst`` for the duration of the context."""
        failed: list[BaseException] = []
        over = threading.Event()
        signs = Path(self.host.layout.bundle("worst")) / "rootfs" / SIGNS[1:]

        def work() -> None:
            try:
                while not self._did("worst", WORST, how, way, str(SECONDS), stdin=_programs()) and not over.is_set():
                    say(f"{way}: the attacking program was killed; starting it again")
            except BaseException as err:
                failed.append(err)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            while not (signs / "ready").exists() and thread.is_alive():
                thread.join(0.1)
            yield
        finally:
            over.set()
            (signs / "ready").unlink(missing_ok=True)
            thread.join()
        if failed:
            raise failed[0]


def _programs() -> str:
    """Return the programs that take resources, by file name, as JSON."""
    import netspace

    folder = Path(netspace.__file__).parent / "environment" / "audit"
    return json.dumps({name: (folder / name).read_text() for name in ("exhaust.py", "pools.py", "storms.py")})


def main() -> None:
    parser = bench.arguments(__doc__, rounds=3)
    parser.add_argument("--ways", default="", help="attacks to measure, separated by commas (default: all)")
    parser.add_argument("--messages", type=int, default=200, help="requests of one round (default 200)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no attack begins after so many minutes (default 8)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    every = ways()
    wanted = options.ways.split(",") if options.ways else list(every)
    rounds, until = Rounds(), time.monotonic() + 60 * options.minutes
    with bench.disk(in_memory=options.memory_disk):
        world = World(options.messages)
        try:
            for number in range(options.rounds):
                for way in wanted:
                    # At least the first attack is measured, even if the preparation took all the minutes.
                    if time.monotonic() >= until and rounds.values:
                        continue
                    say(f"round {number + 1}: {way}")
                    world.measure(rounds, f"{way}, alone")
                    with world.at_worst(way, every[way]):
                        world.measure(rounds, way)
        finally:
            world.host.teardown()
    measured = [way for way in wanted if f"round trip {way}" in rounds]
    if left := [way for way in wanted if way not in measured]:
        say(f"not measured within {options.minutes:g} minutes: {', '.join(left)}")
    lines = {
        f"{what}, {way}": line(
            rounds.middle(f"{what} {way}"), "ms", "alone", rounds.middle(f"{what} {way}, alone"), ratio=goal
        )
        for what, goal in GOALS.items()
        for way in measured
    }
    bench.tell(lines, options)


if __name__ == "__main__":
    main()
