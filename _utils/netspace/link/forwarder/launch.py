"""Start of haproxy (``python -m netspace forward``), even if programs in environments have taken its ports.

The supervisor or systemd runs this module, also after a crash or an update, when no apply runs. So this module itself
checks the environments to serve. It removes an environment from the configuration if its network namespace is missing,
or if one of its programs has taken the port. The served copy of the configuration is changed, too, so that the next
plan notices the change.
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
from netspace.link.forwarder import haproxy, ports, process

SECONDS = 20.0
"""Seconds for which the ports are held at most, until haproxy listens. It needs about one second."""


def main(layout: Layout) -> NoReturn:
    """Replace this process by haproxy; exit with status 1 if that fails."""
    try:
        process.available()
        held = _hold(layout)
    except (NetspaceError, OSError) as err:
        sys.exit(f"forwarder: {err}")
    _become(layout, held)


def _become(layout: Layout, held: ports.Held) -> NoReturn:
    """Replace this process by haproxy. The ports are held until a child process has seen that haproxy listens."""
    if os.fork() == 0:
        # Fork twice: haproxy must not be the parent of a process that it didn't start.
        if os.fork() == 0:
            haproxy.serves(layout, SECONDS)
        os._exit(0)
    os.wait()
    command = process.command(layout)
    with held:
        os.execve(command[0], command, dict(os.environ))  # noqa: S606


def _hold(layout: Layout) -> ports.Held:
    """Hold the ports of all configured environments. If a port can't be held, its environment is left out."""
    path = process.config_file(layout)
    config = path.read_text()
    held = ports.Held({name: (layout.netns(name), port) for name, (_, port) in process.entries(config).items()})
    if held.refused:
        config = process.with_something(layout, without(config, held.refused))
        for one in (path, process.served_file(layout)):
            files.write(one, config.encode())
        print(ports.told(held.refused), file=sys.stderr, flush=True)
    return held


def without(config: str, environments: Collection[str]) -> str:
    """Return haproxy's configuration without the frontends of these environments."""
    gone = {f"{process.SECTION}{name}" for name in environments}
    sections = re.split(r"^(?=\S)", config, flags=re.MULTILINE)
    return "".join(one for one in sections if one.partition("\n")[0] not in gone)
