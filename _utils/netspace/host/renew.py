"""The renewer, run every hour: replaces certificates that expire soon, and gives the new ones to their environments.

It also renews endorsements of keys for sealed links to other hosts, and withdraws secrets for which this host has lost
the trust.

Like :mod:`netspace.host.restore`, it works from the records on disk, without Salt or the declaration. It restarts no
program and ends no connection, because a client reads its certificate whenever it connects.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import peer
from netspace.supervision import select

if TYPE_CHECKING:
    from netspace.environment.reconciler import Environments


def run(layout: Layout) -> int:
    """Renew due certificates and endorsements.

    :return: an exit code: 1 if anything failed. The errors are on stderr.
    """
    try:
        _, errors = renew(layout)
    except NetspaceError as err:
        errors = {"": str(err)}
    for name, error in errors.items():
        sys.stderr.write(f"netspace renew: {name}{': ' if name else ''}{error}\n")
    return 1 if errors else 0


def renew(layout: Layout, *, replace: bool = False, distrust: bool = False) -> tuple[set[str], dict[str, str]]:
    """Replace certificates that are due, and give the new ones to their environments.

    :param replace: whether to replace the CA first.
    :param distrust: whether the previous CAs lose their trust afterwards.
    :return: the environments with a new certificate, and the errors by environment.
    """
    from netspace.environment.reconciler import Environments
    from netspace.link.reconciler import Links

    supervisor = select(layout)
    links = Links(layout, supervisor)
    with files.refusals_told(), files.locked(layout.lock):
        renewed = links.renew(replace=replace, distrust=distrust)
        links.endorse()
        known = Environments(layout, supervisor)
        errors = {**known.hand_out(links.handed()), **_secrets(layout, known)}
        if any(map(peer.is_link, links.recorded())):
            from netspace.host.peer import publish

            publish.publish(layout, links)
        return renewed, errors


def _secrets(layout: Layout, known: Environments) -> dict[str, str]:
    """Withdraw the secrets that this host's trust level no longer permits; return the errors, by environment.

    They are removed from the host's memory and from their environments.
    """
    from netspace.host import secrets

    concerned = secrets.recorded(layout)
    if not concerned:
        return {}
    from netspace.attestation import result
    from netspace.attestation.reconciler import Attestations

    if secrets.lacking(layout, result.trust(layout)):
        Attestations(layout).restore()  # its last result may only have expired
    return {**secrets.revise(layout, result.trust(layout)), **known.hand_out_held(concerned)}
