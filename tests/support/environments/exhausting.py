"""Half of an exhaustion audit, on the host that this runs on, which may be a virtual machine.

``python exhausting.py ENVIRONMENT pools|waiting [NAME...]`` prints a line of JSON for each pool, or for each load that
makes others wait. With names, it tries only these.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

import msgspec

from netspace.environment.audit import pools, storms
from netspace.host import exhaustion
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec.types import Network


def main() -> None:
    name, half, *chosen = sys.argv[1:]
    for table, own in ((pools.POOLS, "pools"), (storms.STORMS, "waiting")):
        for key in list(table):
            if half != own or (chosen and key not in chosen):
                del table[key]  # type: ignore[attr-defined]
    for row in exhaustion.exhaust(Host(Layout()), name, Network()):
        print(msgspec.json.encode(row).decode(), flush=True)


if __name__ == "__main__":
    main()
