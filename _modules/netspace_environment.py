"""
Isolated environments
=====================

See, start, stop and enter the environments of a host. They are declared in pillar or
by :py:mod:`netspace_environment states <netspace.states.netspace_environment>`.

Needs ``crun`` only to start or enter one: every function says what it misses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_environment"
__func_alias__ = {"list_": "list", "exec_": "exec"}

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def _do(action: Callable[[Any], T]) -> T:
    try:
        return action(Host(declared.layout(__opts__)).operations)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def _each(outcomes: dict[str, str]) -> bool:
    failed = {name: error for name, error in outcomes.items() if error}
    if failed:
        raise CommandExecutionError("\n".join(f"{name}: {error}" for name, error in failed.items()))
    return True


def _names(names: tuple[str, ...]) -> list[str]:
    if not names:
        raise CommandExecutionError("name at least one environment; netspace_environment.list shows them")
    return [str(name) for name in names]


def list_() -> dict[str, dict[str, Any]]:
    """
    Return every environment with its state.

    Per name: ``state`` (running, starting, stopped, failed), ``pid``, ``since`` (seconds
    since the epoch), ``restarts``, ``exit`` (how it last ended), ``image``, ``digest`` and
    ``wanted`` (the state it should have).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.list
    """
    return _do(lambda operations: operations.list())


def inspect(name: str) -> dict[str, Any]:
    """
    Return all that is known of one environment: what :py:func:`list <list_>` tells, its
    declaration, ids, namespace, folders and what it uses. Values of variables are not shown.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.inspect web

    name
        The environment.
    """
    return _do(lambda operations: operations.inspect(name))


def start(*names: str) -> bool:
    """
    Start environments that don't run, in parallel.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.start web orders

    names
        The environments.
    """
    return _each(_do(lambda operations: operations.start(_names(names))))


def stop(*names: str) -> bool:
    """
    Stop environments and wait until they are gone. They stay stopped, also over a reboot,
    until they are started or their declaration is applied again.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.stop web

    names
        The environments.
    """
    return _each(_do(lambda operations: operations.stop(_names(names))))


def restart(*names: str) -> bool:
    """
    Stop environments and start them again.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.restart web

    names
        The environments.
    """
    return _each(_do(lambda operations: operations.restart(_names(names))))


def exec_(name: str, command: list[str], timeout: float = 60, stdin: str = "") -> dict[str, Any]:
    """
    Run a command inside a running environment, as its user, with its limits and filter.

    Returns ``retcode``, ``stdout`` and ``stderr``; at most 1 MiB of each.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.exec web '["cat", "/etc/os-release"]'

    name
        The environment.

    command
        Argument vector. **There is no shell** unless you name one.

    timeout
        Seconds after which the command is killed. Defaults to 60.

    stdin
        What the command reads.
    """
    if isinstance(command, str):
        command = [command]
    arguments = [str(argument) for argument in command]
    return _do(lambda operations: operations.exec(name, arguments, timeout=timeout, stdin=stdin))


def logs(name: str, lines: int = 100) -> list[str]:
    """
    Return the last lines that an environment's program wrote.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.logs web lines=20

    name
        The environment.

    lines
        How many. Defaults to 100.
    """
    found: list[str] = _do(lambda operations: operations.logs(name, lines))["lines"]
    return found


def remove(*names: str, purge: bool = False) -> bool:
    """
    Remove environments with all that is theirs: links, layer, namespace and interface.
    What lies in volumes stays. **What is still declared comes back at the next apply.**

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.remove web

    names
        The environments.

    purge
        Drop unread mail too. By default it is parked.
    """
    wanted = _names(names)
    _do(lambda operations: [operations.inspect(name) for name in wanted])  # an unknown name is an error
    try:
        result = Host(declared.layout(__opts__)).remove_environments(wanted, purge=purge)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    return _each({f"{failure.step}": failure.error for failure in result.failures})
