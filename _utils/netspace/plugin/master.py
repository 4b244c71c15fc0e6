"""A master's minions, and the declaration of its fleet, for runners. The runner passes a function that imports Salt."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from netspace.fleet.declaration import FleetDeclaration
from netspace.plugin import fleet_files
from netspace.plugin.minions import Minions, Salt

Load = Callable[[str], ModuleType]
"""Imports a module of Salt by its name: ``importlib.import_module``."""


def minions(opts: dict[str, Any], load: Load) -> Minions:
    """Return the master's minions.

    :param opts: the master's configuration.
    :param load: imports a module of Salt by its name.
    """
    return Minions(
        opts,
        Salt(
            load("salt.client").get_local_client,
            load("salt.exceptions").SaltException,
            load("salt.utils.verify").valid_id,
            load("salt.cache").Cache,
            load("salt.utils.minions").CkMinions,
        ),
    )


def declaration(opts: dict[str, Any], load: Load) -> FleetDeclaration:
    """Return the declaration of the fleet. The master's configuration names its first file.

    :param opts: the master's configuration.
    :param load: imports a module of Salt by its name.
    :raises NetspaceError: the configuration names no file, or every minion could read it.
    """
    return fleet_files.declaration(
        opts,
        fleet_files.root(opts),
        load("salt.fileserver").Fileserver,
        load("salt.loader").render,
        load("salt.template").compile_template,
        load("salt.utils.event").get_event,
    )
