"""Health of message-queue links
=============================

Fires an event when the problems in :py:func:`netspace_link.health <salt.modules.netspace_link.health>` change: the
broker or the forwarder is down, memory or disk space is low, a mailbox is nearly full or has no consumer, or there are
dead-lettered messages.

.. code-block:: yaml

    beacons:
      netspace_link:
        - interval: 60

The event ``salt/beacon/<minion>/netspace_link/`` has ``ok``, ``problems`` (a text for each problem that no other
problem causes) and ``findings`` (all problems, each with ``code``, ``severity``, ``subject``, ``depends_on`` and
``text``). The beacon compares only the codes and subjects of problems, so a changed text or number alone fires no
event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.link import problems  # noqa: E402
from netspace.plugin import arguments  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __context__: dict[str, Any]

__virtualname__ = "netspace_link"

_LAST = "netspace_link.last"


def __virtual__() -> str:
    return __virtualname__


def validate(config: Any) -> tuple[bool, str]:
    """Check the beacon's configuration."""
    if not isinstance(config, list) or not all(isinstance(entry, dict) for entry in config):
        return False, "Configuration for the netspace_link beacon must be a list of mappings."
    return True, "Valid beacon configuration"


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an event if the links' problems changed since the last call; the first call reports any problem."""
    try:
        health = Host(arguments.layout(__opts__)).link_health()
        about = {key: health[key] for key in ("problems", "findings")}
        keys = problems.cause_keys(health["findings"])
    except NetspaceError as err:
        about, keys = {"problems": [str(err)], "findings": []}, ["unreadable"]
    if keys == __context__.get(_LAST, []):
        return []
    __context__[_LAST] = keys
    return [{"ok": not keys, **about}]
