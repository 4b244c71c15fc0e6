"""Become haproxy (``python -m netspace forward``), even if programs in environments have taken its ports.

The supervisor or systemd runs this, also after a crash or an update, when nobody applies anything. So this module
checks the environments to serve. An environment without a network namespace, or whose port a program of its own has
taken, is left out of the configuration, and of the copy by which the next plan notices it.
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
from netspace.link import forwarder, haproxy, ports

SECONDS = 20.0
"""Seconds for which the ports are held for haproxy, which needs one."""

_BOUND = re.compile(
    rf"^{forwarder.SECTION}(\S+)\n(?:    .*\n)*?    bind {re.escape(ports.LOOPBACK)}:(\d+) namespace", re.MULTILINE
)


def main(layout: Layout) -> NoReturn:
    """Replace this process by haproxy; exit with 1 where that fails."""
    try:
        forwarder.available()
        held = _hold(layout)
    except (NetspaceError, OSError) as err:
        sys.exit(f"forwarder: {err}")
    _become(layout, held)


def _become(layout: Layout, held: ports.Held) -> NoReturn:
    """Become haproxy; a child process waits until haproxy listens, and only until then are the ports held."""
    if os.fork() == 0:
        # Twice, so that haproxy is nobody's parent that it doesn't know.
        if os.fork() == 0:
            haproxy.serves(layout, SECONDS)
        os._exit(0)
    os.wait()
    command = forwarder.command(layout)
    with held:
        os.execve(command[0], command, dict(os.environ))  # noqa: S606


def _hold(layout: Layout) -> ports.Held:
    """Hold the ports of all environments to serve; remove an environment whose port can't be held."""
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
    """The configuration without these environments."""
    gone = {f"{forwarder.SECTION}{name}" for name in environments}
    sections = re.split(r"^(?=\S)", config, flags=re.MULTILINE)
    return "".join(one for one in sections if one.partition("\n")[0] not in gone)
