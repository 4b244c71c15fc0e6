"""What a host does after a reboot before its services start: all that is volatile is rebuilt.

From the records on disk, in one process, without Salt, a master or the declaration. It
only puts the kinds' own ``restore`` in order; a kind that fails does not keep the others
from being restored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from netspace import files
from netspace.layout import Layout
from netspace.supervision import select


def run(layout: Layout) -> int:
    """Restore interfaces, environments and links; then have the services started.

    :return: an exit code: 1 where anything failed, which is then told on stderr.
    """
    supervisor = select(layout)

    def interfaces() -> None:
        from netspace.interface.kind import Interfaces

        Interfaces(layout).restore()

    def environments() -> None:
        from netspace.environment.kind import Environments

        Environments(layout, supervisor).restore()

    def links() -> None:
        from netspace.link.kind import Links

        Links(layout, supervisor).restore()

    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("interfaces", interfaces),
        ("environments", environments),
        ("links", links),
        ("services", supervisor.resume),
    )
    failed = 0
    with files.locked(layout.lock):
        for what, step in steps:
            try:
                step()
            except Exception as err:
                failed = 1
                sys.stderr.write(f"netspace restore: {what}: {type(err).__name__}: {err}\n")
    return failed
