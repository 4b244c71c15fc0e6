"""Volumes with a size: list, back up, restore
===========================================

A volume with a ``size`` is a file system that netspace keeps in one file. The file stays when its environment is
removed. A volume with a ``source`` is a folder of the host, which these functions don't handle. What a backup
guarantees, and how to move a volume to another host, is on the documentation's page ``backup``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import arguments, dates, refusal  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_volume"
__func_alias__ = {"list_": "list"}
__outputter__ = {"list_": "netspace"}


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the volumes with a size, including those of removed environments.

    The result has, by environment and target, the volume's ``size``
    (its capacity in bytes), ``used`` (the bytes that it takes on the
    host's disk) and ``file``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_volume.list
    """
    from netspace.environment import copies

    return dates.with_texts(copies.kept(arguments.layout(__opts__)))


def backup(name: str, folder: str) -> dict[str, dict[str, Any]]:
    """Copy an environment's volumes into a folder of this host.

    Returns the copies in the form of ``netspace_volume.list``.

    **The environment's program must not run**: call
    ``netspace_environment.stop`` first and
    ``netspace_environment.start`` afterwards. Until the backup is done,
    netspace changes nothing else on this host. Each copy is
    ``<folder>/<name>/<target>.ext4``, a sparse file that only root can
    read. A new copy replaces the previous one once it is complete and
    checked.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_volume.backup orders /srv/backup

    name
        The environment.

    folder
        An absolute path. Only root may be able to write there.
    """
    from netspace.environment import copies

    try:
        host = Host(arguments.layout(__opts__))
        return copies.save(host.layout, host.supervisor, name, folder)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def restore(name: str, folder: str) -> dict[str, dict[str, Any]]:
    """Restore an environment's volumes from a folder that ``backup`` wrote,
    here or on another host.

    **The volumes' present content is lost.** Returns the volumes in the
    form of ``netspace_volume.list``.

    The environment must not run. It need not exist: if it is declared
    later, it gets these volumes. If a copy is damaged, the function
    raises an error and replaces nothing.

    CLI Example:

    .. code-block:: bash

        salt h2 netspace_volume.restore orders /srv/backup

    name
        The environment.

    folder
        The folder that was given to ``backup``. The copies in it must
        belong to root.
    """
    from netspace.environment import copies

    try:
        host = Host(arguments.layout(__opts__))
        return copies.load(host.layout, host.supervisor, name, folder)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
