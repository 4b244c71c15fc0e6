"""Readiness for a change of trust
===============================

Keeps netspace's library loaded in the minion's own process. Every job is a fork of this process, so a job of netspace
needs no time to load the library. The first to gain are revocations: when the master begins to distrust a host, the
minions of its peers :py:func:`revise <salt.modules.netspace_trust.revise>` their links.

.. code-block:: yaml

    beacons:
      netspace_trust:
        - interval: 60

The beacon fires no event, and asks neither the host nor the broker for anything. After an update of netspace, it loads
the new library at the next interval; jobs before that load it by themselves.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import netspace

netspace.refresh(__file__)

_NEEDED = (
    *("netspace.attestation.fleet.own_answers", "netspace.host.host", "netspace.host.revise"),
    *("netspace.link.mail.dead_letters", "netspace.link.reconciler", "netspace.link.severing"),
    *("netspace.plugin.apply_progress", "netspace.plugin.arguments", "netspace.plugin.dates"),
    *("netspace.plugin.fileserver", "netspace.plugin.own_pillar", "netspace.plugin.refusal"),
    *("netspace.plugin.salt_keys", "netspace.plugin.urgent"),
)
"""Modules that a revision of links needs, and the module by which a master requests it."""

__virtualname__ = "netspace_trust"


def __virtual__() -> str:
    return __virtualname__


def validate(config: Any) -> tuple[bool, str]:
    """Check the beacon's configuration."""
    if not isinstance(config, list) or not all(isinstance(entry, dict) for entry in config):
        return False, "Configuration for the netspace_trust beacon must be a list of mappings."
    return True, "Valid beacon configuration"


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Load the modules that netspace's jobs need, unless they are loaded. Never returns an event."""
    sys.modules["netspace"].refresh(__file__)  # this file's name netspace may be an unloaded library
    for name in _NEEDED:
        import_module(name)
    return []
