"""
Virtual interfaces
==================

Lists the interfaces and network namespaces of this host. The states of the same name
create them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.interface.reconciler import Interfaces  # noqa: E402
from netspace.plugin import arguments, dates, refusal  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_interface"
__func_alias__ = {"list_": "list"}
__outputter__ = dict.fromkeys(("list_", "inspect"), "netspace")


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, dict[str, Any]]:
    """Return every environment's interface.

    Each row has the interface's kind and addresses, the name of the
    host end, the published ports of the host, the path of the network
    namespace, and ``state``. The state is ``present``, ``differs``
    (somebody changed the keys listed in ``differs``; the next apply
    repairs them), or ``missing`` (there is no namespace).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_interface.list
    """
    try:
        return dates.with_texts(Interfaces(arguments.layout(__opts__)).list())
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def inspect(name: str) -> dict[str, Any]:
    """Return one interface as ``declared``, as observed (``live``), and the
    differences (``drift``).

    ``drift`` has, for each differing key, the observed value (``old``)
    and the declared value (``new``).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_interface.inspect orders

    name
        The environment's name.
    """
    try:
        return dates.with_texts(Interfaces(arguments.layout(__opts__)).inspect(name))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
