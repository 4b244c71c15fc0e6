"""What a host does after a reboot before its services start: all that is volatile is rebuilt.

From the records on disk, in one process, without Salt, a master or the declaration. It
only puts the kinds' own ``restore`` in order; a kind that fails does not keep the others
from being restored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from netspace import files
from netspace.layout import Layout
from netspace.supervision import select


def run(layout: Layout) -> int:
    """Restore interfaces, environments and links; then have the services started.

    :return: an exit code: 1 where anything failed, which is then told on stderr.
    """
    supervisor = select(layout)

    def interfaces() -> Mapping[str, str]:
        from netspace.interface.kind import Interfaces

        return {str(failure.step): failure.error for failure in Interfaces(layout).restore().failures}

    def environments() -> Mapping[str, str]:
        from netspace.environment.kind import Environments

        return Environments(layout, supervisor).restore()

    def links() -> Mapping[str, str]:
        from netspace.link.kind import Links

        return Links(layout, supervisor).restore()

    def services() -> Mapping[str, str]:
        supervisor.resume()
        return {}

    steps: tuple[tuple[str, Callable[[], Mapping[str, str]]], ...] = (
        ("interfaces", interfaces),
        ("environments", environments),
        ("links", links),
        ("services", services),
    )
    failed = 0
    with files.locked(layout.lock):
        for what, step in steps:
            try:
                errors = step()
            except Exception as err:
                errors = {type(err).__name__: str(err)}
            for name, error in errors.items():
                failed = 1
                sys.stderr.write(f"netspace restore: {what}: {name}: {error}\n")
    return failed
