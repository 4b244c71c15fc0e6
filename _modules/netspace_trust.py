"""Trust of a fleet's master in a host
====================================

When the master begins or ceases to trust a host, it calls ``revise`` on this host and on the hosts linked with it: see
the page on fleets.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError, SaltException  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import cuts  # noqa: E402
from netspace.host import revise as revision  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, own_pillar, refusal, urgent  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402

if TYPE_CHECKING:
    __grains__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_trust"


def __virtual__() -> str:
    return __virtualname__


def revise(hosts: list[str], own: bool = False, cut: list[str] | None = None) -> list[str]:
    """Make and revoke links to and from other hosts as this host's pillar says
    now; return the failures.

    Other links, and environments, stay as they are.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_trust.revise '[h2]'

    hosts
        Names of hosts in the fleet. If empty: all hosts with links to
        or from this one.

    own
        Whether the trust in this host itself changed. If so, its whole
        pillar is applied: environments and links that demand more trust
        than the host has are stopped or reported, as declared, and the
        others are restored. Defaults to False.

    cut
        Names of hosts whose links end at once, all of them, before this
        host asks the master for its pillar. By default, none.
    """
    for key, given in (("hosts", hosts), ("cut", cut or [])):
        if not isinstance(given, list) or any(not isinstance(one, str) for one in given):
            raise CommandExecutionError(f"{key}: {given!r:.100}: expected a list of names")
    with urgent.urgent() if cut else contextlib.nullcontext():
        return _revised(hosts, own, cut)


def _revised(hosts: list[str], own: bool, cut: list[str] | None) -> list[str]:
    import salt.pillar

    try:
        layout = arguments.layout(__opts__)
        if cut and (failed := revision.part(Host(layout), cut)):
            log.warning("netspace: links to %s: some don't end at once: %s", ", ".join(cut), "; ".join(failed))
        asked = cuts.clock()
        # A job has the pillar of the time when the minion last refreshed it.
        section = own_pillar.fetch(__opts__, __grains__, salt.pillar.get_pillar, "", note=True)
        declared = arguments.whole(section, {})
        files, reading = SaltFiles(__salt__, __opts__), apply_progress.reading(__opts__, __salt__)
        host = Host(layout, remote=files, **reading)
        for problem in revision.note(host, declared, () if own else hosts, cut or (), asked):
            log.warning("netspace: %s", problem)
        result = revision.whole(host, declared) if own else revision.links(host, declared, hosts)
        if own and result.outcomes:
            arguments.tell_targets(__salt__, __opts__, __pillar__)
    except (NetspaceError, SaltException) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    finally:
        __salt__["saltutil.refresh_pillar"]()
    return revision.problems(result)
