"""Closing of routes to other hosts in the running forwarder, at once, without its configuration or a lock."""

from __future__ import annotations

from collections.abc import Collection

from netspace import files
from netspace.layout import Layout
from netspace.link.forwarder import haproxy, process


def close(layout: Layout, ways: Collection[tuple[str, str]]) -> None:
    """Close routes, and end the connections over them.

    The copy of the served configuration is changed first. So the next ``process.apply`` finds a difference and reloads
    its own configuration: a route that is still declared then works again.

    :param ways: pairs of an environment and another host.
    :raises NetspaceError: haproxy doesn't answer.
    """
    before = process.current(layout)
    known = {line.removeprefix(process.WAY) for line in before.splitlines() if line.startswith(process.WAY)}
    gone = sorted(f"{name}:{host}" for name, host in ways if f"{name}:{host}" in known)
    if not gone:
        return
    files.write(process.served_file(layout), f"{before}# closed: {' '.join(gone)}\n".encode())
    for worker in haproxy.workers(layout, haproxy.SILENT_SECONDS):
        for way in gone:
            haproxy.ask(layout, f"@!{worker} disable server to:{way}/broker")
    haproxy.end(layout, [f"to:{way}" for way in gone])
