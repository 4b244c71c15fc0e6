"""The renewer's hourly run: certificates that are due are issued anew, and handed to their holders.

It renews endorsements of keys for sealed links to other hosts as well.

It reads the records on disk, without Salt or the declaration, like :mod:`netspace.restore`. No program is restarted
and no connection ended: a client reads its certificate whenever it connects.
"""

from __future__ import annotations

import sys

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision import select


def run(layout: Layout) -> int:
    """Renew what is due.

    :return: an exit code: 1 where anything failed, which is then told on stderr.
    """
    try:
        _, errors = renew(layout)
    except NetspaceError as err:
        errors = {"": str(err)}
    for name, error in errors.items():
        sys.stderr.write(f"netspace renew: {name}{': ' if name else ''}{error}\n")
    return 1 if errors else 0


def renew(layout: Layout, *, replace: bool = False, distrust: bool = False) -> tuple[set[str], dict[str, str]]:
    """Issue and hand out.

    :param replace: have another authority; *distrust*: and trust no former one from now on.
    :return: the environments that got a new certificate, and what went wrong, by environment.
    """
    from netspace.environment.kind import Environments
    from netspace.link.kind import Links

    supervisor = select(layout)
    links = Links(layout, supervisor)
    with files.refusals_told(), files.locked(layout.lock):
        renewed = links.renew(replace=replace, distrust=distrust)
        links.endorse()
        return renewed, Environments(layout, supervisor).hand_out(links.handed())
