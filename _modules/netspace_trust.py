"""
Trust of a fleet's master, on a host
====================================

The master calls ``revise`` on a host when it came to trust or distrust that host or one of its peers: see the page on
fleets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError, SaltException  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import revise as revision  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import arguments, own_pillar, refusal  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402

if TYPE_CHECKING:
    __grains__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_trust"


def __virtual__() -> str:
    return __virtualname__


def revise(hosts: list[str], own: bool = False) -> list[str]:
    """
    Make and revoke links to and from other hosts as this host's pillar says now; return what failed.

    Other links, and environments, stay as they are.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_trust.revise '[h2]'

    hosts
        Names of hosts in the fleet. None: all hosts with links to or from this one.

    own
        Whether the trust in this host itself changed. Then its whole pillar is applied: environments and links for
        which it has too little trust are stopped or reported, as declared, and others are restored. Defaults to False.
    """
    import salt.pillar

    if not isinstance(hosts, list) or any(not isinstance(one, str) for one in hosts):
        raise CommandExecutionError(f"hosts: {hosts!r:.100}: expected a list of names")
    try:
        # A job has the pillar of the time when the minion last refreshed it.
        section = own_pillar.fetch(__opts__, __grains__, salt.pillar.get_pillar, "")
        declared = arguments.whole(section, {})
        host = Host(arguments.layout(__opts__), remote=SaltFiles(__salt__, __opts__))
        result = revision.whole(host, declared) if own else revision.links(host, declared, hosts)
        if own and result.outcomes:
            arguments.tell_targets(__salt__, __opts__, __pillar__)
    except (NetspaceError, SaltException) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    finally:
        __salt__["saltutil.refresh_pillar"]()
    return revision.problems(result)
