"""
Environments as targets of Salt
===============================

Makes every environment that is declared with ``target: true`` a target of its own, of Salt's
resource type ``netspace``: ``salt -C 'T@netspace:MINION-ENVIRONMENT' test.ping``. See
:doc:`/resources`.

Needs Salt 3008, which brought resources, and ``resources: {netspace: {}}`` in the minion's pillar.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

# Where it finds out which targets there are, Salt has no synced library on its import path, as
# it has for other plugins; and the folder beside this file bears the library's name.
if "netspace" not in sys.modules:
    _synced = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "utils")
    if os.path.isfile(os.path.join(_synced, "netspace", "__init__.py")) and _synced not in sys.path:
        sys.path.append(_synced)

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import targets  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402

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


def _targets(opts: dict[str, Any]) -> targets.Targets:
    try:
        return targets.of(opts)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def init(opts: dict[str, Any]) -> None:
    """Get ready: there is nothing to connect to."""
    __context__[_CONTEXT] = True


def initialized() -> bool:
    """Return whether :func:`init` was called."""
    return bool(__context__.get(_CONTEXT))


def shutdown(opts: dict[str, Any]) -> None:
    """Undo :func:`init`."""
    __context__.pop(_CONTEXT, None)


def _keep_the_minions_return() -> None:
    """Make the minion return its own result when a state function reaches both it and its targets.

    The minion of Salt 3008 (seen in 3008.4) runs such functions on its targets at the end of its own job, and then
    returns for the targets alone: of ``salt '*' state.apply`` its own return is lost (``Minion._thread_return``, "merge
    mode"). The job is therefore done in two parts, one after the other: the minion's own, then its targets'. A
    pattern of minion ids has no second part: the master waits for no target then (``CkMinions.check_minions``).
    """
    from salt.minion import Minion

    original = getattr(Minion, "_thread_return", None)
    if original is None or not getattr(Minion, "_MERGE_RESOURCE_FUNS", None) or hasattr(original, "in_two_parts"):
        return

    def in_two_parts(cls: type, minion: Any, opts: dict[str, Any], data: dict[str, Any]) -> Any:
        merged = isinstance(data.get("fun"), str) and data["fun"] in Minion._MERGE_RESOURCE_FUNS
        if merged and data.get("resource_targets") and not data.get("pure_resource_target"):
            own = original.__func__(cls, minion, opts, {**data, "resource_targets": []})
            if data.get("tgt_type", "glob") == "glob":
                return own
            data = {**data, "pure_resource_target": True}
        return original.__func__(cls, minion, opts, data)

    in_two_parts.in_two_parts = True  # type: ignore[attr-defined]
    Minion._thread_return = classmethod(in_two_parts)


def discover(opts: dict[str, Any]) -> list[str]:
    """Return the ids of this minion's targets: of what was applied with ``target: true`` and is to run."""
    _keep_the_minions_return()
    return list(_targets(opts).list())


def ping() -> bool:
    """Return whether the target runs, seen from inside."""
    return _targets(__opts__).ping(__resource__["id"])


def grains() -> dict[str, Any]:
    """Return the target's grains."""
    try:
        return _targets(__opts__).grains(__resource__["id"])
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def grains_refresh() -> dict[str, Any]:
    """Return the target's grains: nothing of them is kept."""
    return grains()
