"""
The pillar of one host, out of a fleet's declaration
====================================================

One file declares the hosts of a fleet, their environments and the links between these. Each minion gets what its host
needs, and nothing of others: see the page on fleets.

The master's configuration names the file::

    ext_pillar:
      - netspace: /srv/fleet/fleet.yaml

    netspace.fleet:
      folder: /var/lib/netspace-master/fleet   # the default: what hosts published, and what is in force
      served: false                            # true: the file may be one that every minion can read

Every minion can read the files in ``file_roots`` and gitfs. A declaration there, also by a name ``salt://...``, is
refused unless ``served`` is true.

A declaration with a problem changes nothing: minions go on to get the last good one. The problems are in the master's
log, and an event ``netspace/fleet/refused`` comes once for each version of the files.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.fleet.in_force import Refusal  # noqa: E402
from netspace.plugin import fleet_files  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace"


def __virtual__() -> str:
    return __virtualname__


def ext_pillar(minion_id: str, pillar: dict[str, Any], file: str) -> dict[str, Any]:
    """
    Return the pillar of one minion.

    It is empty for a minion that is no host of the fleet.

    minion_id
        The minion's id, which Salt has authenticated.

    pillar
        The minion's other pillar. It isn't read, because a minion can put values into it.

    file
        The first file of the declaration: an absolute path; or ``salt://...``, if ``served`` is true.
    """
    import salt.fileserver
    import salt.loader
    import salt.template

    declared = fleet_files.declaration(
        __opts__, file, salt.fileserver.Fileserver, salt.loader.render, salt.template.compile_template
    )
    answer = declared.answer(minion_id)
    if answer.alarm is not None:
        _alarm(answer.alarm)
    return answer.pillar or {}


def _alarm(refusal: Refusal) -> None:
    """Tell of a declaration that is refused, in the log and on Salt's bus. Neither goes to a minion."""
    for file, path, reason in refusal.problems:
        log.error("netspace: the fleet's declaration is refused: %s: %s: %s", file, path, reason)
    with contextlib.suppress(Exception):  # a masterless minion has no bus; the log has it in any case
        import salt.utils.event

        data = {"problems": [list(one) for one in refusal.problems[:20]], "count": refusal.count}
        with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
            bus.fire_event(data, "netspace/fleet/refused")
