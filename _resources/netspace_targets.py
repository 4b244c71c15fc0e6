"""Environments as targets of Salt
===============================

Makes every environment that is declared with ``target: true`` a separate target, of the resource type ``netspace``:
``salt -C 'T@netspace:MINION-ENVIRONMENT' test.ping``. See :doc:`/resources`.

This needs ``resources: {netspace: {}}`` in the minion's pillar, and Salt 3008, the first version with resources.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

# When Salt looks for targets, its import path lacks the synced libraries (for other plugins, it has them).
# Besides, Python could take the folder ``netspace`` beside this file for the library.
if "netspace" not in sys.modules:
    _synced = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "utils")
    if os.path.isfile(os.path.join(_synced, "netspace", "__init__.py")) and _synced not in sys.path:
        sys.path.append(_synced)

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import salt_addressing, salt_targets  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __resource__: dict[str, str]

__virtualname__ = "netspace"
_CONTEXT = "netspace.targets"


def __virtual__() -> str | tuple[bool, str]:
    import salt.loader

    if not hasattr(salt.loader, "resource_modules"):
        return False, "environments are targets with Salt 3008 and newer: this Salt has no resources"
    return __virtualname__


def _targets(opts: dict[str, Any]) -> salt_targets.Targets:
    try:
        return salt_targets.of(opts)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def init(opts: dict[str, Any]) -> None:
    """Record that Salt has called this function. A target needs no connection."""
    __context__[_CONTEXT] = True


def initialized() -> bool:
    """Return whether :func:`init` was called."""
    return bool(__context__.get(_CONTEXT))


def shutdown(opts: dict[str, Any]) -> None:
    """Record that :func:`init` must be called again."""
    __context__.pop(_CONTEXT, None)


def discover(opts: dict[str, Any]) -> list[str]:
    """Return the ids of this minion's targets.

    Targets are the environments that were applied with ``target: true`` and whose desired state is running.

    The function also patches the minion, so that a target runs only jobs that address the target
    (``netspace.host.salt_addressing``).
    """
    from salt.minion import Minion

    try:
        salt_addressing.correct(Minion)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    return list(_targets(opts).list())


def ping() -> bool:
    """Return whether the target runs, checked from inside the environment."""
    return _targets(__opts__).ping(__resource__["id"])


def grains() -> dict[str, Any]:
    """Return the target's grains."""
    try:
        return _targets(__opts__).grains(__resource__["id"])
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def grains_refresh() -> dict[str, Any]:
    """Return the target's grains. They are never cached."""
    return grains()
