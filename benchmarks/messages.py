"""Messages through netspace-client, compared with bare aiormq, NATS JetStream and Redis streams.

usage: sudo python benchmarks/messages.py [--json | --markdown] [--seconds N]

It runs in a sandbox (``scripts/sandbox``), on loopback. Each program is a process: one asks or sends, another answers
or receives. Requests come one after another. ``sends`` are 256 calls at the same time, each waiting for its
confirmation; ``pipelined`` is a batch with up to 1,024 unconfirmed messages. Messages have 64 bytes.

*disk*: each message is on disk before it is confirmed (a quorum queue; JetStream with ``sync_interval: always``; Redis
with ``appendfsync always``). *memory*: no message is written to disk. Bare aiormq uses the same broker without TLS and
forwarder. Debian's ``nats-server`` and ``redis-server`` are started here. A peer that isn't installed is left out, with
the reason.

*processor time* is that of the whole sandbox for each message: both programs, the server, and the forwarder. It hardly
depends on other load. *beside aiormq* and *beside NATS* are netspace's value divided by that of the peer; for messages
per second, the peer's divided by netspace's. So a value below 1 means that netspace takes less.

The benchmark takes three minutes at most: each measurement ends after a number of messages or seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bench
from bench import say
from message_programs import PROCESSOR

sys.path[:0] = [str(bench.ROOT / "client/src"), str(bench.ROOT / "tests")]

PROGRAMS = Path(__file__).with_name("message_programs.py")
PLAIN_PORT, NATS_PORT, REDIS_PORT = 5699, 4299, 6399
PEERS = ("netspace", "bare aiormq", "NATS JetStream", "Redis streams")
GOALS = {
    "question and answer, memory, p50": "0.8 ms",
    "pipelined, disk": "10000 msg/s",
    "pipelined, memory": "20000 msg/s",
    "pipelined, sealed": "5000 msg/s",
}

Figures = dict[str, dict[str, float]]
"""By row and peer."""


def program(client: str, role: str, address: str, name: str, *seconds: float, inside: str = "") -> list[str]:
    """Return the command of a program; *inside* is its network namespace."""
    command = [sys.executable, str(PROGRAMS), client, role, address, name, *map(str, seconds)]
    return ["ip", "netns", "exec", inside, *command] if inside else command


@contextlib.contextmanager
def running(*commands: list[str]) -> Iterator[None]:
    """Run programs during the context."""
    started = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.wait()


def measured(command: list[str], patience: float) -> Any:
    with bench.processor_file().open("rb") as used:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            timeout=patience + 60,
            check=True,
            env={**os.environ, PROCESSOR: str(used.fileno())},
            pass_fds=[used.fileno()],
        )
    return json.loads(done.stdout)


class Found:
    """The measured values so far, and for each peer that wasn't measured the reason."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.figures: Figures = {}
        self.lacking: dict[str, str] = {}
        self.samples: list[int] = []

    def note(self, row: str, peer: str, value: float) -> None:
        self.figures.setdefault(row, {})[peer] = value

    def both(self, peer: str, client: str, kind: str, where: dict[str, tuple[str, str, str]]) -> None:
        """Measure requests and sends, on disk or in memory (*kind*).

        :param where: by role: the program's address, its name, and its network namespace.
        """
        say(f"{peer}, {kind}")

        def of(role: str, *seconds: float) -> list[str]:
            address, name, inside = where[role]
            return program(client, role, address, name, *seconds, inside=inside)

        if client == "bare":
            subprocess.run(of("prepare"), check=True)
        with running(of("answer")):
            for name, value in measured(of("ask", self.seconds), self.seconds).items():
                if name == "samples":
                    self.samples.append(int(value))
                else:
                    self.note(f"question and answer, {kind}, {name}", peer, value)
        with running(of("drain")):
            for name, value in measured(of("pour", self.seconds), 2 * self.seconds).items():
                what, _, more = name.partition(", ")
                self.note(", ".join(filter(None, (what, kind, more))), peer, value)


def links(found: Found, folder: Path) -> None:
    """Measure netspace-client, and aiormq on the same broker."""
    from support.links.link_world import World

    from netspace.link.broker import node
    from netspace.spec.types import Link

    kinds: dict[str, dict[str, Any]] = {"disk": {}, "memory": {"durable": False}, "sealed": {"seal": True}}
    world = World()
    try:
        names = [f"{kind}-{role}" for kind in kinds for role in ("answer", "drain")]
        world.environment("web", *names)
        world.apply(
            *(Link(source="web", target=f"{kind}-answer", pattern="request", **more) for kind, more in kinds.items()),
            *(Link(source="web", target=f"{kind}-drain", **more) for kind, more in kinds.items()),
        )
        for name in ("web", *names):
            world.write_cards(name, folder / name)

        def at(name: str, peer: str) -> tuple[str, str, str]:
            return str(folder / name), peer, world.layout.netns_name(name)

        for kind in kinds:
            answer, drain = f"{kind}-answer", f"{kind}-drain"
            where = {"answer": at(answer, ""), "drain": at(drain, "")}
            found.both("netspace", "netspace", kind, {**where, "ask": at("web", answer), "pour": at("web", drain)})
        listen = (
            "application:set_env(rabbit, auth_mechanisms, ['EXTERNAL', 'PLAIN']), "
            f'rabbit_networking:start_tcp_listener({{"127.0.0.1", {PLAIN_PORT}}}, 10).'
        )
        refused = node.evaluate(world.layout, world.broker, listen)
        assert not refused, refused
        admin = node.login(world.layout)
        assert admin, "the broker keeps no login"
        login = folder / "login"  # a file, since other users could read the arguments of a process
        login.touch(mode=0o600)
        login.write_text(f"amqp://{admin.username}:{admin.password}@127.0.0.1:{PLAIN_PORT}/{world.layout.instance}")
        for kind in ("disk", "memory"):
            found.both("bare aiormq", "bare", kind, dict.fromkeys(ROLES, (str(login), kind, "")))
    finally:
        world.remove()


ROLES = ("prepare", "answer", "drain", "ask", "pour")


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def server(found: Found, peer: str, client: str, port: int, command: list[str] | None, kind: str) -> None:
    """Measure a peer that has its own server."""
    if command is None:
        return
    with running(command):
        end = time.monotonic() + 30
        while not listens(port):
            if time.monotonic() > end:
                found.lacking[peer] = "it doesn't start"
                return
            time.sleep(0.1)
        found.both(peer, client, kind, dict.fromkeys(ROLES, (str(port), kind, "")))


def nats(found: Found, folder: Path, kind: str) -> list[str] | None:
    if (where := shutil.which("nats-server")) is None:
        found.lacking["NATS JetStream"] = "nats-server is not installed (apt-get install nats-server)"
        return None
    config = folder / f"nats-{kind}.conf"
    store = folder / f"nats-{kind}"
    config.write_text(
        f"listen: 127.0.0.1:{NATS_PORT}\njetstream {{ store_dir: {json.dumps(str(store))}\n sync_interval: always }}\n"
    )
    return [where, "-c", str(config), "-l", str(folder / f"nats-{kind}.log")]


def redis(found: Found, folder: Path, kind: str) -> list[str] | None:
    if (where := shutil.which("redis-server")) is None:
        found.lacking["Redis streams"] = "redis-server is not installed (apt-get install redis-server)"
        return None
    kept = ["--appendonly", "yes", "--appendfsync", "always"] if kind == "disk" else ["--appendonly", "no"]
    place = folder / f"redis-{kind}"
    place.mkdir()
    quiet = ["--save", "", "--loglevel", "warning", "--logfile", str(place / "log")]
    return [where, "--bind", "127.0.0.1", "--port", str(REDIS_PORT), "--dir", str(place), *quiet, *kept]


def measure(options: argparse.Namespace) -> Found:
    found = Found(options.seconds)
    with bench.disk(in_memory=options.memory_disk) as disk, tempfile.TemporaryDirectory(prefix="messages-") as name:
        links(found, Path(name))
        for kind in ("disk", "memory"):
            server(found, "NATS JetStream", "nats", NATS_PORT, nats(found, disk, kind), kind)
            server(found, "Redis streams", "redis", REDIS_PORT, redis(found, disk, kind), kind)
    return found


def _cell(row: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} msg/s" if _is_rate(row) else f"{value:.2f} ms" if value > 0.2 else f"{value:.3f} ms"


def _is_rate(row: str) -> bool:
    return not row.startswith("question") and not row.endswith("processor time")


def _ratio(row: str, values: Mapping[str, float], peer: str) -> str:
    """Return how many times the peer's cost netspace's is; empty if one of both wasn't measured."""
    ours, theirs = values.get("netspace"), values.get(peer)
    if not ours or not theirs:
        return ""
    return f"{theirs / ours if _is_rate(row) else ours / theirs:.2f}"


def _table(found: Found) -> Iterator[str]:
    load = f"load {os.environ.get('NETSPACE_BENCHMARK_LOAD', 'unknown')} before and {os.getloadavg()[0]:.1f} after"
    yield f"{bench.machine()}; {load}; {min(found.samples)} to {max(found.samples)} questions each."
    yield from (f"Left out: {peer}: {why}." for peer, why in found.lacking.items())
    yield ""
    yield f"| | {' | '.join(PEERS)} | beside aiormq | beside NATS | goal |"
    yield "|---|" + "---|" * (len(PEERS) + 3)
    for row, values in found.figures.items():
        cells = [_cell(row, values.get(peer)) for peer in PEERS]
        cells += [_ratio(row, values, peer) for peer in PEERS[1:3]]
        yield f"| {row} | {' | '.join(cells)} | {GOALS.get(row, '')} |"


def main() -> int:
    parser = bench.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="longest duration of one measurement (default 3)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    found = measure(options)
    if options.json:
        print(json.dumps({"figures": found.figures, "left out": found.lacking}, indent=1))
    else:
        print("\n".join(_table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
