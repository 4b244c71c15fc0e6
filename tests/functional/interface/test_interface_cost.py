"""The cost of a packet doesn't grow with the number of environments: the test counts the rules that a packet meets."""

from __future__ import annotations

import re
import select
import socket
import subprocess
from pathlib import Path

import pytest
from support.interfaces.interface_bench import WIRE, Bench, listen, run, veth, within
from support.waiting import until

pytestmark = pytest.mark.root

OUT = {"direction": "out", "cidr": "198.18.0.0/15", "port": 8080}
_MET = re.compile(r"trace id \w+ inet netspace (\S+) (?:rule|verdict|policy)")


def met(bench: Bench, port: int) -> list[str]:
    """Return the chain of each rule of netspace that a connection's first packet meets, in order."""
    run("nft add table inet tracing")
    run("nft add chain inet tracing p { type filter hook prerouting priority -450 ; }")
    run(f"nft add rule inet tracing p iifname {bench.host_end('a')} tcp flags syn meta nftrace set 1")
    monitor = subprocess.Popen(["nft", "monitor", "trace"], stdout=subprocess.PIPE)
    stdout = monitor.stdout
    assert stdout is not None
    text = b""

    def ids() -> list[str]:
        return list(dict.fromkeys(re.findall(r"^trace id (\w+) ", text.decode(), re.MULTILINE)))

    def attempt() -> None:
        with socket.socket() as client:
            client.settimeout(0.3)
            client.connect_ex((WIRE["ipv4"][1], port))

    def another_is_traced() -> bool:
        nonlocal text
        within(bench.path("a"), attempt)
        while select.select([stdout], [], [], 0.1)[0]:
            text += stdout.read1()
        return len(ids()) > 1

    try:
        # Anew: the monitor doesn't say that it listens. Once it tells of another packet, it has told all of the first.
        until(another_is_traced, "no packet is traced", pause=0)
    finally:
        monitor.kill()
        monitor.wait()
        stdout.close()
        run("nft delete table inet tracing")
    lines = text.decode().splitlines()
    first = ids()[0]
    chains = [match[1] for line in lines if f"trace id {first} " in line and (match := _MET.match(line))]
    return [re.sub(r"\.[0-9a-f]{12}$", "", chain) for chain in chains]


@pytest.mark.parametrize("port", [8080, 9999], ids=["allowed", "refused"])
def test_a_packet_meets_as_many_rules_among_200_environments_as_alone(bench: Bench, outside: Path, port: int) -> None:
    with listen(outside, WIRE["ipv4"][1], port):
        bench.make(a=veth(OUT))
        alone = met(bench, port)
        # Each with rules and limits of its own, so that no two share a chain.
        others = {f"e{number}": veth({**OUT, "port": 1000 + number}, connections=100 + number) for number in range(200)}
        bench.make(a=veth(OUT), **others)
        among = met(bench, port)
    assert {"spoofed", "forward", "beyond"} <= set(alone)
    assert ("opened.from" in alone) == (port == 8080)
    assert among == alone
