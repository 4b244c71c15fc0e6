"""The pillar of one host, from a fleet's declaration
==================================================

One file declares the hosts of a fleet, their environments and the links between these. From this file, each minion gets
only the part that its host needs: see the page on fleets.

The master's configuration names the file::

    ext_pillar:
      - netspace: /srv/fleet/fleet.yaml

    netspace.fleet:
      folder: /var/lib/netspace-master/fleet   # the default: facts from hosts, and the declaration in force
      served: false                            # true: allow a file that every minion can read

Every minion can read the files in ``file_roots`` and gitfs. A declaration there, also one with a name ``salt://...``,
is refused unless ``served`` is true.

If the declaration has a problem, minions still get the last good version. The problems are in the master's log. The
event ``netspace/fleet/refused`` is sent once for each faulty version of the files.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.fleet import edition  # noqa: E402
from netspace.plugin import fleet_files, fleet_secrets, own_pillar  # noqa: E402

if TYPE_CHECKING:
    from netspace.fleet.declaration import FleetDeclaration

    __opts__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace"


def __virtual__() -> str:
    return __virtualname__


def ext_pillar(
    minion_id: str, pillar: dict[str, Any], file: str, extra_minion_data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the pillar of one minion; empty for a minion that is no host of the fleet.

    minion_id
        The minion's id, which Salt has authenticated.

    pillar
        The minion's other pillar. This function doesn't read it, because a minion can put values into it.

    file
        The first file of the declaration: an absolute path; or ``salt://...``, if ``served`` is true.

    extra_minion_data
        Data that the minion adds to its request. ``{netspace: {candidate: ID}}`` asks for the minion's part of a
        planned version of the declaration that isn't in force yet (``apply: planned``).
    """
    import salt.fileserver
    import salt.loader
    import salt.template
    import salt.utils.event

    try:
        declared = fleet_files.declaration(
            __opts__,
            file,
            salt.fileserver.Fileserver,
            salt.loader.render,
            salt.template.compile_template,
            salt.utils.event.get_event,
        )
        if generation := own_pillar.candidate(extra_minion_data):
            if __opts__.get("pillar_cache"):
                raise NetspaceError("pillar_cache would serve a planned declaration as the one in force; turn it off")
            planned = _with_secrets(minion_id, declared.planned_pillar(generation, minion_id), declared)
            return {**planned, own_pillar.MARK: generation, **_edition(declared)}
        pillar = declared.answer(minion_id).pillar
        return {**_with_secrets(minion_id, pillar, declared), **_edition(declared)} if pillar else {}
    except Exception as err:  # Salt would show its text to the minion
        log.error("netspace: %s: no pillar of the fleet: %s: %s", minion_id, type(err).__name__, err)
    raise NetspaceError("no pillar of the fleet can be served; the master's log has more")


def _with_secrets(minion: str, pillar: dict[str, Any], declared: FleetDeclaration) -> dict[str, Any]:
    """Return a minion's pillar with its secrets, each encrypted to the minion's host, in place of their sources."""
    if not fleet_secrets.wanted(pillar):
        return pillar
    import salt.loader
    import salt.utils.sdb

    opts = fleet_files.without_minion(__opts__)

    def standing(minion: str) -> Any:
        return salt.loader.runner(opts)["netspace_attestation.standing"](minion)

    def read(uri: str) -> object:
        return salt.utils.sdb.sdb_get(uri, opts, strict=True)

    found = fleet_secrets.filled(pillar, minion, declared.register, standing, read)
    for where, why in found.problems.items():
        log.warning("netspace: %s: secret %s: %s", minion, ":".join(where), why)
    return {**pillar, "netspace": found.section}


def _edition(declared: FleetDeclaration) -> dict[str, int]:
    """Return the edition as a part of a pillar; empty if the declaration has none."""
    found = declared.edition.read()
    return {edition.KEY: found} if found else {}
