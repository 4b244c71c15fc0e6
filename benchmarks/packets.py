"""What a packet costs among many environments, beside what it costs alone.

Run it on a host of its own: ``sudo scripts/sandbox python benchmarks/packets.py [--json] [--count N]``.
A datagram goes from one environment through the host's packet filter to the host, and back, as
often as it can; first with that environment alone, then among others with rules of their own.
Medians of several rounds. The target: no dearer than a tenth, whatever the number.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_utils"))

from netspace.interface import namespaces
from netspace.interface.kind import DesiredInterfaces, Interfaces
from netspace.layout import Layout
from netspace.spec import parse

PORT = 7007


def converge(kind: Interfaces, declared: dict[str, object], remove: set[str] | tuple[()] = ()) -> None:
    desired = DesiredInterfaces(interfaces={name: parse.interface(value) for name, value in declared.items()})
    failed = [outcome for outcome in kind.apply(kind.plan(desired, kind.observe(), remove).steps) if outcome.error]
    assert not failed, failed[0]


def round_trip(path: Path, gateway: str, times: int) -> float:
    """Microseconds for a datagram there and back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind((gateway, PORT))

        def echo() -> None:
            while True:
                data, peer = host.recvfrom(100)
                if data == b"end":
                    return
                host.sendto(data, peer)

        def ask() -> float:
            namespaces.enter(path)
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
        taken = namespaces.in_thread(ask)
        echoing.join()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    parser.add_argument("--count", type=int, default=1000, help="environments (default 1000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--times", type=int, default=5000, help="datagrams a round (default 5000)")
    options = parser.parse_args()
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
        converge(kind, declared)
        time.sleep(1)
        middle.append(
            statistics.median(round_trip(layout.netns("one"), gateway, options.times) for _ in range(options.rounds))
        )
    converge(kind, {}, kind.names())
    alone, among = middle
    found = {
        f"a datagram there and back among {options.count}": {
            "value": round(among, 2),
            "unit": "us",
            "peer": "alone",
            "peer_value": round(alone, 2),
            "ratio": round(among / alone, 3),
            "target": 1.1,
            "met": among / alone <= 1.1,
        }
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, line in found.items():
        verdict = "met" if line["met"] else "MISSED"
        print(f"{name}: {line['value']} us, alone {line['peer_value']} us, x{line['ratio']} (target x1.1, {verdict})")


if __name__ == "__main__":
    main()
