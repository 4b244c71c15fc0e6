"""
Virtual interfaces
==================

What interfaces and network namespaces there are on this host. They are made by the
states of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.interface.kind import Interfaces  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_interface"
__func_alias__ = {"list_": "list"}


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, dict[str, Any]]:
    """
    Return every environment's interface: its kind, addresses, the name of its host end, the ports of
    the host that are published, its namespace's path, and its state: ``present``; ``differs`` (by hand,
    in the keys that ``differs`` names; the next apply mends it); or ``missing``, where there is no namespace.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_interface.list
    """
    try:
        return Interfaces(declared.layout(__opts__)).list()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def inspect(name: str) -> dict[str, Any]:
    """
    Return one interface as it is declared (``declared``), as it is (``live``), and what
    differs (``drift``: per key the ``old`` value, found, and the ``new`` one, due).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_interface.inspect orders

    name
        The environment's name.
    """
    try:
        return Interfaces(declared.layout(__opts__)).inspect(name)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
