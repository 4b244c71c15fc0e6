"""
Events of isolated environments
===============================

Fires an event when an environment of the host crashes (``crashed``), is killed for want of memory, or one of its
processes is (``oom``), ends and is restarted again and again (``flapping``), is stopped by a signal (``frozen``) or
fails its health check (``unhealthy``), and when nobody is there to restart what ends (``unsupervised``), which is so of
all of them.

.. code-block:: yaml

    beacons:
      netspace_environment:
        - events: [crashed, oom, flapping, unhealthy, frozen, unsupervised]
        - environments: [web, orders]
        - interval: 10

Both lists are optional: by default all is told of all. The tag is
``salt/beacon/<minion>/netspace_environment/<environment>/<event>``; the data are ``environment``, ``event``,
``state``, ``health``, ``exit``, ``restarts`` and ``oom_kills``. ``unsupervised`` has the tag
``salt/beacon/<minion>/netspace_environment/unsupervised``, and as data ``event`` and ``environments``. What lasts
is told once, until it is over and happens again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import declared  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.health import alarms  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]

__virtualname__ = "netspace_environment"

_SEEN = "netspace_environment.seen"


def __virtual__() -> str:
    return __virtualname__


def validate(config: Any) -> tuple[bool, str]:
    """
    Say whether the configuration of this beacon can be used.
    """
    problem = alarms.problem(config)
    return (False, f"netspace_environment: {problem}") if problem else (True, "Valid beacon configuration.")


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Look at all environments once, and return what is new.
    """
    from netspace.host import Host

    settings: dict[str, Any] = {key: value for part in config for key, value in part.items()}
    try:
        rows = Host(declared.layout(__opts__)).environments.list()
    except NetspaceError:
        return []  # its records can't be read now: what is new will be told by the next look
    chosen = settings.get("environments")
    now = {name: row for name, row in rows.items() if chosen is None or name in chosen}
    events = alarms.news(__context__.get(_SEEN), now, settings.get("events", alarms.EVENTS))
    __context__[_SEEN] = now
    return events
