"""Run one part of an exhaustion audit on this host, which may be a virtual machine.

``python exhausting.py ENVIRONMENT pools|waiting|services [NAME...]`` prints a line of JSON for each pool, for each load
that makes others wait, or for each attack on a service. With names, it tries only these.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

import msgspec

from netspace.environment.audit import pools, storms
from netspace.host import exhaustion, service_exhaustion
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec.types import Network


def main() -> None:
    name, part, *chosen = sys.argv[1:]
    table: dict[str, object] = {"pools": pools.POOLS, "waiting": storms.STORMS, "services": service_exhaustion.WAYS}[
        part
    ]
    host, only = Host(Layout()), chosen or list(table)
    found = exhaustion.exhaust(host, name, Network(), only=only) + service_exhaustion.exhaust(host, name, only)
    for row in found:
        print(msgspec.json.encode(row).decode(), flush=True)


if __name__ == "__main__":
    main()
