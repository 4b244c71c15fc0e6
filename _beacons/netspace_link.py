"""
Health of message-queue links
=============================

Fires an event when the problems in :py:func:`netspace_link.health <salt.modules.netspace_link.health>` change:
the broker or the forwarder is down, memory or disk space is low, a mailbox is nearly full or has no consumer,
or there are dead-lettered messages.

.. code-block:: yaml

    beacons:
      netspace_link:
        - interval: 60

The event ``salt/beacon/<minion>/netspace_link/`` has ``ok`` and ``problems``. If only the numbers in a problem change,
no event is fired.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
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
        problems = [str(problem) for problem in health["problems"]]
    except NetspaceError as err:
        problems = [str(err)]
    kinds = sorted(re.sub(r"\d+", "0", problem) for problem in problems)
    if kinds == __context__.get(_LAST, []):
        return []
    __context__[_LAST] = kinds
    return [{"ok": not problems, "problems": problems}]
