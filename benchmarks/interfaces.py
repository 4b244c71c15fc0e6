"""The time to make, check and remove interfaces, compared with the cost of netlink itself.

usage: sudo python benchmarks/interfaces.py [--json | --markdown] [--count N] [--many N] [--rounds N]

It starts a sandbox (``scripts/sandbox``). There are two peers, measured in turn within each round. One makes the same
links, addresses and routes by only hand-packed netlink (the floor, ``by_hand.py``: no record, no packet filter, no
settings). The other uses ``ip -batch``. The namespaces exist before the measurement. Their cost has its own line, with
``ip netns add`` as peer. The results are medians of the rounds.

*remove* deletes link, namespace, record and rules, like the removal of an environment. *change to none* keeps namespace
and record, like a new declaration.

*create* is a whole apply: an observation of the host, records on disk, the packet filter, and links with 14 settings
each. *create, without records and filter* is only the part that the floor also does.
"""

from __future__ import annotations

import argparse
import subprocess
from typing import Any

import bench
from bench import Rounds, line, say


def measure(options: argparse.Namespace) -> Rounds:
    import by_hand

    from netspace.interface.apply import ApplyRun
    from netspace.interface.plan import DesiredInterfaces
    from netspace.interface.reconciler import Interfaces
    from netspace.layout import Layout
    from netspace.spec import parse

    layout = Layout()
    kind = Interfaces(layout)
    rounds = Rounds()
    rule = {"direction": "out", "cidr": "198.18.0.0/15", "port": 443}

    def desired(count: int, declared: dict[str, Any]) -> DesiredInterfaces:
        one = parse.interface(declared)
        return DesiredInterfaces(interfaces={f"bench{number}": one for number in range(count)})

    def converge(wanted: DesiredInterfaces, remove: Any = ()) -> int:
        plan = kind.plan(wanted, kind.observe(wanted, doomed=remove), remove)
        failed = [outcome for outcome in kind.apply(plan.steps) if outcome.error]
        assert not failed, failed[0]
        return len(plan.steps)

    def unchanged(wanted: DesiredInterfaces) -> None:
        assert converge(wanted) == 0

    def links(*steps: str) -> None:
        """Measure also the parts of an apply that use only netlink."""
        for name in steps:
            real = getattr(ApplyRun, name)

            def timed(self: ApplyRun, work: Any, real: Any = real) -> None:
                with rounds.timed("part"):
                    real(self, work)

            setattr(ApplyRun, name, timed)

    links("_inside", "_outside")
    count = options.count
    bare = desired(count, {"kind": "none"})
    wired = desired(count, {"kind": "veth", "allow": [rule]})
    paths = [layout.netns(name) for name in bare.interfaces]
    few = min(count, 50)

    def one_round() -> None:
        rounds.time("namespaces", lambda: converge(bare), count)
        rounds.time("namespaces unchanged", lambda: unchanged(bare))
        rounds.values["part"] = []
        rounds.time("create", lambda: converge(wired), count)
        rounds.note("links", sum(rounds.values["part"]) / count)
        rounds.time("unchanged", lambda: unchanged(wired))
        rounds.time("none", lambda: converge(bare), count)
        rounds.time("floor", lambda: by_hand.floor(paths), count)
        rounds.time("floor remove", lambda: by_hand.remove_by_ip(count), count)
        rounds.time("ip", lambda: by_hand.ip_batch(paths), count)
        rounds.time("ip remove", lambda: by_hand.remove_by_ip(count), count)
        names = set(bare.interfaces)
        converge(wired)
        rounds.time("remove", lambda: converge(DesiredInterfaces(), names), count)
        converge(bare)
        rounds.time("namespaces remove", lambda: converge(DesiredInterfaces(), names), count)
        with rounds.timed("ip netns", few):
            for one in range(few):
                subprocess.run(["ip", "netns", "add", f"x{one}"], check=True)
        with rounds.timed("ip netns remove", few):
            for one in range(few):
                subprocess.run(["ip", "netns", "del", f"x{one}"], check=True)

    for number in range(options.rounds):
        say(f"{count} interfaces: round {number + 1} of {options.rounds}")
        with bench.disk(in_memory=options.memory_disk):
            one_round()
    if options.many:
        say(f"{options.many} interfaces")
        many = desired(options.many, {"kind": "veth", "allow": [rule]})
        with bench.disk(in_memory=options.memory_disk):
            rounds.time("many create", lambda: converge(many), options.many)
            for _ in range(options.rounds):
                rounds.time("many unchanged", lambda: unchanged(many))
            rounds.time("many remove", lambda: converge(DesiredInterfaces(), set(many.interfaces)), options.many)
    return rounds


def lines(rounds: Rounds, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    middle, count, many = rounds.middle, options.count, options.many

    def limit(number: int) -> float:
        return 200 + (2000 - 200) * max(number - 50, 0) / 950  # 0.2 s at 50, 2 s at 1,000

    def each(name: str, value: str, peer: str, against: str, ratio: float | None = None) -> dict[str, Any]:
        return {f"{count} {name}": line(middle(value), "ms each", peer, middle(against), ratio=ratio)}

    found = {
        **each("interfaces, create", "create", "hand-packed netlink", "floor", 1.5),
        **each("interfaces, create, without records and filter", "links", "hand-packed netlink", "floor"),
        **each("interfaces, create, processor time", "create cpu", "hand-packed netlink", "floor cpu"),
        **each("interfaces, create beside ip", "create", "ip -batch", "ip", 0.5),
        **each("interfaces, remove, their namespaces too", "remove", "create", "create", 1.0),
        **each("interfaces, remove, processor time", "remove cpu", "create", "create cpu"),
        **each("interfaces, change to none", "none", "create", "create"),
        **each("interfaces, remove beside ip", "none", "ip -batch link del", "ip remove", 1.0),
        f"{count} interfaces, unchanged": line(middle("unchanged"), "ms", "limit", limit(count), ratio=1.0),
        **each("namespaces, create", "namespaces", "ip netns add", "ip netns", 1.0),
        **each("namespaces, remove", "namespaces remove", "ip netns del", "ip netns remove", 1.0),
        f"{count} namespaces, unchanged": line(middle("namespaces unchanged"), "ms", "limit", limit(count), ratio=1.0),
    }
    if many:
        found |= {
            f"{many} with namespaces, create": line(
                middle("many create"), "ms each", "hand-packed netlink, no namespaces", middle("floor")
            ),
            f"{many} with namespaces, remove": line(
                middle("many remove"), "ms each", "create", middle("many create"), ratio=1.0
            ),
            f"{many} interfaces, unchanged": line(middle("many unchanged"), "ms", "limit", limit(many), ratio=1.0),
        }
    return found


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--count", type=int, default=500, help="interfaces (default 500)")
    parser.add_argument("--many", type=int, default=1000, help="interfaces of the large batch (default 1000; 0: none)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    rounds = measure(options)
    bench.tell(lines(rounds, options), options)


if __name__ == "__main__":
    main()
