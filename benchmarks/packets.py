"""The cost of a packet on a host with many environments, compared with one environment.

usage: sudo python benchmarks/packets.py [--json] [--count N] [--rounds N] [--times N]

It starts a sandbox (``scripts/sandbox``). A datagram goes from one environment through the host's packet filter to the
host and back, as often as possible. This is measured first with only that environment, and then with others that have
rules of their own. The results are medians of several rounds. The goal is at most a tenth more, for any number of
environments.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench import line, say

if TYPE_CHECKING:
    from netspace.interface.reconciler import Interfaces

PORT = 7007


def converge(kind: Interfaces, declared: Mapping[str, object], remove: set[str] | tuple[()] = ()) -> None:
    from netspace.interface.plan import DesiredInterfaces
    from netspace.spec import parse

    desired = DesiredInterfaces(interfaces={name: parse.interface(value) for name, value in declared.items()})
    failed = [outcome for outcome in kind.apply(kind.plan(desired, kind.observe(), remove).steps) if outcome.error]
    assert not failed, failed[0]


def round_trip(path: Path, gateway: str, times: int) -> float:
    """Return the microseconds for a datagram there and back."""
    from netspace.interface import netns
    from netspace.threads import in_thread

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind((gateway, PORT))

        def echo() -> None:
            while True:
                data, peer = host.recvfrom(100)
                if data == b"end":
                    return
                host.sendto(data, peer)

        def ask() -> float:
            netns.enter(path)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect((gateway, PORT))
                client.settimeout(10)
                for _ in range(100):
                    client.send(b"warm")
                    client.recv(100)
                start = time.perf_counter()
                for _ in range(times):
                    client.send(b"x")
                    client.recv(100)
                taken = time.perf_counter() - start
                client.send(b"end")
            return taken / times * 1e6

        echoing = threading.Thread(target=echo)
        echoing.start()
        taken = in_thread(ask)
        echoing.join()
    return taken


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """Return the microseconds per packet, with the environment alone and among the others."""
    from netspace.interface.plan import DesiredInterfaces
    from netspace.interface.reconciler import Interfaces
    from netspace.layout import Layout

    layout = Layout()
    kind = Interfaces(layout)
    gateway = str(DesiredInterfaces().network.ipv4.network[1])
    one = {"kind": "veth", "allow": [{"direction": "out", "cidr": gateway, "protocol": "udp", "port": PORT}]}
    others = {
        f"e{number}": {"kind": "veth", "allow": [{"direction": "out", "cidr": "198.18.0.0/15", "port": 1000 + number}]}
        for number in range(options.count - 1)
    }
    middle = []
    for declared in ({"one": one}, {"one": one, **others}):
        say(f"{len(declared)} environments")
        converge(kind, declared)
        time.sleep(1)
        middle.append(
            statistics.median(round_trip(layout.netns("one"), gateway, options.times) for _ in range(options.rounds))
        )
    converge(kind, {}, kind.names())
    alone, among = middle
    return alone, among


def main() -> None:
    parser = bench.arguments(__doc__, rounds=7)
    parser.add_argument("--count", type=int, default=1000, help="environments (default 1000)")
    parser.add_argument("--times", type=int, default=5000, help="datagrams of a round (default 5000)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    with bench.disk(in_memory=options.memory_disk):
        alone, among = measure(options)
    name = f"a datagram there and back among {options.count}"
    bench.tell({name: line(among, "us", "alone", alone, ratio=1.1)}, options)


if __name__ == "__main__":
    main()
