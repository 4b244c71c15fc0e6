"""
Events of isolated environments
===============================

Fires an event when the state of one of the host's environments changes:

- ``crashed``: the environment crashed.
- ``oom``: the kernel killed the environment, or one of its processes, because memory ran out.
- ``flapping``: the environment exits and is restarted again and again.
- ``frozen``: a signal stopped the environment.
- ``unhealthy``: the environment fails its health check.
- ``unsupervised``: no supervisor runs, so nothing restarts environments. This concerns all environments of the host.

.. code-block:: yaml

    beacons:
      netspace_environment:
        - events: [crashed, oom, flapping, unhealthy, frozen, unsupervised]
        - environments: [web, orders]
        - interval: 10

Both lists are optional: by default, the beacon fires all events of all environments. The tag is
``salt/beacon/<minion>/netspace_environment/<environment>/<event>``; the data are ``environment``, ``event``,
``state``, ``health``, ``exit``, ``restarts`` and ``oom_kills``. ``unsupervised`` has the tag
``salt/beacon/<minion>/netspace_environment/unsupervised``, and the data ``event`` and ``environments``. A lasting
condition fires one event, and fires again only after it has ended and come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.environment.health import alarms  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.plugin import arguments  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]

__virtualname__ = "netspace_environment"

_SEEN = "netspace_environment.seen"


def __virtual__() -> str:
    return __virtualname__


def validate(config: Any) -> tuple[bool, str]:
    """
    Check the beacon's configuration.
    """
    problem = alarms.problem(config)
    return (False, f"netspace_environment: {problem}") if problem else (True, "Valid beacon configuration.")


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Observe all environments once, and return events for the changes since the last call.
    """
    from netspace.host.host import Host

    settings: dict[str, Any] = {key: value for part in config for key, value in part.items()}
    try:
        rows = Host(arguments.layout(__opts__)).environments.list()
    except NetspaceError:
        return []  # the records can't be read now: a later call returns the changes
    chosen = settings.get("environments")
    now = {name: row for name, row in rows.items() if chosen is None or name in chosen}
    events = alarms.news(__context__.get(_SEEN), now, settings.get("events", alarms.EVENTS))
    __context__[_SEEN] = now
    return events
