"""How fast interfaces are made, found unchanged and removed, beside what netlink itself costs.

Run it on a host of its own: ``sudo scripts/sandbox python benchmarks/interfaces.py [--json] [--count N]``.
Peers: the same links, addresses and routes by hand-packed netlink and nothing else (the
floor: no records, no packet filter, no settings), and by ``ip -batch``. Namespaces are made
beforehand, for all three; what they cost is a line of its own. Medians of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_utils"))

from netspace.interface import namespaces
from netspace.interface.kind import DesiredInterfaces, Interfaces
from netspace.layout import Layout
from netspace.spec import parse

BATCH = 100


# -- the floor: netlink packed by hand, as little of it as will do --------------------
def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 1 | flags, 0, 0) + body


def up(index: int) -> bytes:
    return message(16, 0, struct.pack("=BxHiII", 0, 0, index, 1, 1))


def pair(name: str, host: int) -> bytes:
    peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0")
    peer += attribute(28, struct.pack("=I", host))
    information = attribute(1, b"veth") + attribute(2, attribute(1, peer))
    body = struct.pack("=BxHiII", 0, 0, 2, 0, 0) + attribute(3, b"eth0\0") + attribute(18, information)
    return message(16, 0x600, body)


def packed(address: str) -> tuple[int, int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    return family, 8 * len(raw), raw


def address(index: int, text: str) -> bytes:
    family, bits, raw = packed(text)
    body = struct.pack("=BBBBI", family, bits, 0, 0, index) + attribute(2, raw) + attribute(1, raw)
    return message(20, 0x400, body + attribute(8, struct.pack("=I", 0x202 if family == socket.AF_INET6 else 0x200)))


def route(index: int, to: str, via: str) -> bytes:
    family, bits, raw = packed(to or via)
    head = struct.pack("=BBBBBBBBI", family, bits if to else 0, 0, 0, 254, 4, 0 if via else 253, 1, 4 if via else 0)
    body = head + (attribute(1, raw) if to else b"") + attribute(4, struct.pack("=I", index))
    return message(24, 0x400, body + (attribute(5, packed(via)[2]) if via else b""))


def send(where: socket.socket, messages: list[bytes]) -> None:
    for start in range(0, len(messages), BATCH):
        part = messages[start : start + BATCH]
        last = bytearray(part[-1])
        struct.pack_into("=H", last, 6, struct.unpack_from("=H", last, 6)[0] | 4)
        where.send(b"".join(part[:-1]) + last)
        answer = where.recv(1 << 16)
        code = struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(-code, os.strerror(-code))


def plain(number: int) -> tuple[str, str]:
    return f"10.99.{number >> 8}.{number & 255}", f"fd99::1:{number:x}"


def floor(paths: list[Path]) -> None:
    host = os.open("/proc/self/ns/net", os.O_RDONLY)

    def inside() -> None:
        for number, path in enumerate(paths):
            namespaces.enter(path)
            v4, v6 = plain(number)
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as inner:
                send(inner, [
                    pair(f"fl{number}", host), address(2, v4), address(2, v6), up(2),
                    route(2, "", "10.98.0.1"), route(2, "", "fd98::1"),
                ])  # fmt: skip

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    os.close(host)
    todo: list[bytes] = []
    for number in range(len(paths)):
        index = socket.if_nametoindex(f"fl{number}")
        v4, v6 = plain(number)
        todo += [up(index), address(index, "10.98.0.1"), address(index, "fd98::1")]
        todo += [route(index, v4, ""), route(index, v6, "")]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as outer:
        send(outer, todo)


def ip_batch(paths: list[Path]) -> None:
    outer: list[str] = []
    for number, path in enumerate(paths):
        v4, v6 = plain(number)
        outer.append(f"link add fl{number} type veth peer name eth0 netns {path.name}")
    batch([], outer)
    outer = []
    for number, path in enumerate(paths):
        v4, v6 = plain(number)
        batch(["-n", path.name], [
            f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad", "link set eth0 up",
            "route add default via 10.98.0.1 dev eth0 onlink", "-6 route add default via fd98::1 dev eth0 onlink",
        ])  # fmt: skip
        outer += [
            f"link set fl{number} up", f"addr add 10.98.0.1/32 dev fl{number}",
            f"addr add fd98::1/128 dev fl{number} nodad noprefixroute",
            f"route add {v4} dev fl{number}", f"-6 route add {v6} dev fl{number}",
        ]  # fmt: skip
    batch([], outer)


def batch(options: list[str], lines: list[str]) -> None:
    plain_lines = [line.removeprefix("-6 ") for line in lines]
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(plain_lines).encode(), check=True)


def remove_by_ip(count: int) -> None:
    batch([], [f"link del fl{number}" for number in range(count)])


# -- ours ---------------------------------------------------------------------------
def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def converge(kind: Interfaces, desired: DesiredInterfaces, remove: set[str] | tuple[()] = ()) -> int:
    plan = kind.plan(desired, kind.observe(desired), remove)
    failed = [outcome for outcome in kind.apply(plan.steps) if outcome.error]
    assert not failed, failed[0]
    return len(plan.steps)


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    layout = Layout()
    kind = Interfaces(layout)
    names = [f"bench{number}" for number in range(count)]
    paths = [layout.netns(name) for name in names]
    rule = {"direction": "out", "cidr": "198.18.0.0/15", "port": 443}
    bare = DesiredInterfaces(interfaces={name: parse.interface({"kind": "none"}) for name in names})
    wired = DesiredInterfaces(interfaces={name: parse.interface({"kind": "veth", "allow": [rule]}) for name in names})
    times: dict[str, list[float]] = {}
    few = min(count, 50)

    def note(name: str, work: Callable[[], Any], each: int = count) -> None:
        times.setdefault(name, []).append(timed(work) / each)

    def unchanged(desired: DesiredInterfaces) -> None:
        assert converge(kind, desired) == 0

    for _ in range(rounds):
        note("namespaces", lambda: converge(kind, bare))
        note("namespaces unchanged", lambda: unchanged(bare), 1)
        note("create", lambda: converge(kind, wired))
        note("unchanged", lambda: unchanged(wired), 1)
        note("unwire", lambda: converge(kind, bare))
        note("floor", lambda: floor(paths))
        note("floor remove", lambda: remove_by_ip(count))
        note("ip", lambda: ip_batch(paths))
        note("ip remove", lambda: remove_by_ip(count))
        note("namespaces remove", lambda: converge(kind, DesiredInterfaces(), set(names)))
        note("ip netns", lambda: [subprocess.run(["ip", "netns", "add", f"x{n}"], check=True) for n in range(few)], few)
        for number in range(few):
            subprocess.run(["ip", "netns", "del", f"x{number}"], check=True)
    return times


def lines(times: dict[str, list[float]], count: int) -> dict[str, dict[str, Any]]:
    middle = {name: statistics.median(values) for name, values in times.items()}

    def line(value: str, peer: str, against: str, target: float, unit: str = "ms each") -> dict[str, Any]:
        ratio = middle[value] / middle[against]
        return {
            "value": round(middle[value], 3),
            "unit": unit,
            "peer": peer,
            "peer_value": round(middle[against], 3),
            "ratio": round(ratio, 2),
            "target": target,
            "met": ratio <= target,
        }

    def within(value: str, limit: float) -> dict[str, Any]:
        return {
            "value": round(middle[value], 1),
            "unit": "ms",
            "peer": "limit",
            "peer_value": round(limit),
            "ratio": round(middle[value] / limit, 3),
            "target": 1.0,
            "met": middle[value] <= limit,
        }

    limit = 200 + (2000 - 200) * max(count - 50, 0) / 950  # 0.2 s at 50, 2 s at 1,000
    return {
        f"{count} interfaces, create": line("create", "hand-packed netlink", "floor", 1.5),
        f"{count} interfaces, create beside ip": line("create", "ip -batch", "ip", 0.5),
        f"{count} interfaces, remove": line("unwire", "ip -batch link del", "ip remove", 1.0),
        f"{count} interfaces, unchanged": within("unchanged", limit),
        f"{count} namespaces, create": line("namespaces", "ip netns add", "ip netns", 1.0),
        f"{count} namespaces, unchanged": within("namespaces unchanged", limit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    parser.add_argument("--count", type=int, default=500, help="interfaces (default 500)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    options = parser.parse_args()
    found = lines(measure(options.count, options.rounds), options.count)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, one in found.items():
        print(
            f"{name:42} {one['value']:8} {one['unit']:8} {one['peer']:20} {one['peer_value']:8} "
            f"x{one['ratio']:<6} target x{one['target']} {'met' if one['met'] else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
