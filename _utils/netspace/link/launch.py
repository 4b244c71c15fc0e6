"""Become haproxy (``python -m netspace forward``), whatever programs do to the ports that it is to have.

The supervisor or systemd starts it alone, after a crash or an update too, when nobody applies anything. So what it
shall serve is looked at here: who has lost its port to a program of its own, or has no namespace any more, is left
out, in the configuration and in the copy of it by which the next plan sees that.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from typing import NoReturn

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import forwarder, ports

SECONDS = 20.0
"""How long the ports are held for haproxy, which has them within one."""

_BOUND = re.compile(
    rf"^{forwarder.SECTION}(\S+)\n(?:    .*\n)*?    bind {re.escape(ports.LOOPBACK)}:(\d+) namespace", re.MULTILINE
)


def main(layout: Layout) -> NoReturn:
    """Replace this process by haproxy; end it with 1 where that can't be."""
    try:
        forwarder.available()
        held = _hold(layout)
    except (NetspaceError, OSError) as err:
        sys.exit(f"forwarder: {err}")
    _become(layout, held)


def _become(layout: Layout, held: ports.Held) -> NoReturn:
    """Hold what is *held* in a process that ends when haproxy has it, and be haproxy in this one."""
    if os.fork() == 0:
        # Twice, so that haproxy is nobody's parent that it doesn't know.
        if os.fork() == 0:
            forwarder.serves(layout, SECONDS)
        os._exit(0)
    os.wait()
    command = forwarder.command(layout)
    with held:
        os.execve(command[0], command, dict(os.environ))  # noqa: S606


def _hold(layout: Layout) -> ports.Held:
    """Hold the ports of all that is to be served; whoever's can't be held is served no more."""
    path = forwarder.config_file(layout)
    config = path.read_text()
    held = ports.Held({name: (layout.netns(name), port) for name, port in wanted(config).items()})
    if held.refused:
        config = forwarder.with_something(layout, without(config, held.refused))
        for one in (path, forwarder.served_file(layout)):
            files.write(one, config.encode())
        print(ports.told(held.refused), file=sys.stderr, flush=True)
    return held


def wanted(config: str) -> dict[str, int]:
    """The port of each environment that a configuration serves."""
    return {name: int(port) for name, port in _BOUND.findall(config)}


def without(config: str, environments: Collection[str]) -> str:
    """A configuration that doesn't serve these."""
    gone = {f"{forwarder.SECTION}{name}" for name in environments}
    sections = re.split(r"^(?=\S)", config, flags=re.MULTILINE)
    return "".join(one for one in sections if one.partition("\n")[0] not in gone)
