"""
Message-queue links between environments
========================================

What links there are on this host, and whether they work. To make or revoke links
use the states of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import supervision  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402
from netspace.layout import Layout  # noqa: E402
from netspace.link.kind import Links  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_link"

__func_alias__ = {"list_": "list"}


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, Any]:
    """
    Return the links of this host, with the state of each, and the mailboxes.

    ``links`` says per link ``from``, ``to``, ``pattern`` and ``state``: ``active``, ``missing``
    (declared, but not on the broker: apply again) or ``unknown`` (the broker gives no answer).
    ``mailboxes`` says per environment ``messages`` and ``consumers`` (up to 5 s old), and
    ``parked`` whose mail was left when its last link went.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.list
    """
    try:
        return _links().list()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def health() -> dict[str, Any]:
    """
    Return what needs attention: ``{ok: bool, problems: [text]}``.

    Looks at the broker and its memory and disk alarms, the forwarder, dead letters and
    parked mail.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.health
    """
    try:
        return _links().health()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def renew_seals(*environments: str) -> list[str]:
    """
    Give environments new keys for their sealed links now, and tell their peers; return which have new ones.

    They are used a minute later, when all have heard of them, and the old ones are kept for what is under way:
    nothing is lost. An apply does the same when keys are 30 days old; this is for when one may be known to others.

    environments
        Names; absent: all that have sealed links.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.renew_seals vault
    """
    layout = Layout(instance=__opts__.get("netspace.instance", "netspace"))
    try:
        renewed, result = Host(layout).renew_seals(environments)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    if result.failures:
        told = "; ".join(f"{failure.step.name}: {failure.error}" for failure in result.failures)
        raise CommandExecutionError(f"the keys are new, but not all were told: {told}")
    return renewed


def _links() -> Links:
    layout = Layout(instance=__opts__.get("netspace.instance", "netspace"))
    return Links(layout, supervision.select(layout))
