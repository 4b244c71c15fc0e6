"""
Volumes with a size: see, back up, put back
===========================================

A volume with a ``size`` is a file system that netspace keeps, in one file; it outlives its environment. Those with a
``source`` are folders of the host, and are not seen here. What a backup is worth, and how to move a volume to another
host, is on the page :doc:`backup </day-2/backup>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import arguments  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_volume"
__func_alias__ = {"list_": "list"}
__outputter__ = {"list_": "netspace"}


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, dict[str, dict[str, Any]]]:
    """
    Return the volumes that netspace keeps, also those of environments that are gone.

    Per environment and target: ``size`` (bytes that it may hold), ``used`` (bytes that it takes of the host's disk) and
    ``file``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_volume.list
    """
    from netspace.environment import copies

    return copies.kept(arguments.layout(__opts__))


def backup(name: str, folder: str) -> dict[str, dict[str, Any]]:
    """
    Copy an environment's volumes into a folder of this host; return the copies, as :py:func:`list <list_>` does.

    **Its program must not run**: call ``netspace_environment.stop`` first and ``netspace_environment.start``
    afterwards. Nothing else of netspace is changed on this host meanwhile. Each copy is
    ``<folder>/<name>/<target>.ext4``, a sparse file of root's alone; it replaces the one before once it is whole and
    checked.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_volume.backup orders /srv/backup

    name
        The environment.

    folder
        An absolute path. Nobody but root may be able to write there.
    """
    from netspace.environment import copies

    try:
        host = Host(arguments.layout(__opts__))
        return copies.save(host.layout, host.supervisor, name, folder)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def restore(name: str, folder: str) -> dict[str, dict[str, Any]]:
    """
    Put an environment's volumes back from a folder that ``backup`` made, here or on another host; return them, as
    :py:func:`list <list_>` does. **What they hold now is lost.**

    The environment must not run. It need not exist: when it is declared, it gets these volumes. A damaged copy is an
    error and replaces nothing.

    CLI Example:

    .. code-block:: bash

        salt h2 netspace_volume.restore orders /srv/backup

    name
        The environment.

    folder
        The folder that was given to ``backup``. The copies in it must be files of root's.
    """
    from netspace.environment import copies

    try:
        host = Host(arguments.layout(__opts__))
        return copies.load(host.layout, host.supervisor, name, folder)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
