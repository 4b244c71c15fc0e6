"""
Isolated environments
=====================

See, start, stop and enter the environments of a host. They are declared in pillar or
by :py:mod:`netspace_environment states <netspace.states.netspace_environment>`.

Needs ``crun`` only to start or enter one: every function says what it misses.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]

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
    """Tell Salt that its targets may have changed, then return True.

    :raises CommandExecutionError: *outcomes* has an error for some name; all of them are told.
    """
    declared.tell_targets(__salt__, __opts__, __pillar__)
    failed = {name: error for name, error in outcomes.items() if error}
    if failed:
        raise CommandExecutionError("\n".join(f"{name}: {error}" for name, error in failed.items()))
    return True


def _argument_vector(given: Any) -> list[str]:
    """Return a program with its arguments: a text is split as a shell splits it, a list is taken as it is."""
    if isinstance(given, str):
        try:
            found = shlex.split(given)
        except ValueError as err:
            raise CommandExecutionError(f"command {given!r:.80}: {err}; give it as a list") from err
    else:
        found = [str(word) for word in (given if isinstance(given, list | tuple) else [given])]
    if not found:
        raise CommandExecutionError("no command given; try: netspace_environment.exec web ls /")
    return found


def _names(names: tuple[str, ...]) -> list[str]:
    if not names:
        raise CommandExecutionError("name at least one environment; netspace_environment.list shows them")
    return [str(name) for name in names]


def list_() -> dict[str, dict[str, Any]]:
    """
    Return every environment with its state.

    Per name: ``state`` (running, starting, stopped, failed, or frozen: stopped by a signal), ``health`` (healthy,
    starting, unhealthy, unknown; empty without a check or while it doesn't run), ``flapping`` (whether it ends and is
    restarted again and again),
    ``pid``, ``since`` (seconds since the epoch), ``restarts``, ``exit`` (how it last ended: ``oom`` is for want of
    memory), ``oom_kills`` (how many of its processes the kernel killed for that since it was asked to start),
    ``image``, ``digest``, ``runtime``, ``wanted`` (the state it should have, by its declaration or by hand),
    ``declared_stopped`` (whether its declaration says ``state: stopped``), ``updating`` (whether a second
    instance is there, which an update started beside it), ``supervised`` (whether somebody is there to start it
    again when it ends) and ``problem`` (why it doesn't run, or not well, as far as that is known). Of one whose
    record is damaged only the service is known; its ``problem`` says what to do.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.list
    """
    return _do(lambda operations: operations.list())


def inspect(name: str) -> dict[str, Any]:
    """
    Return all that is known of one environment: what :py:func:`list <list_>` tells, its
    declaration, ids, namespace, folders and what it uses. Values of variables are not shown.

    ``sigterm`` says what becomes of the SIGTERM of a stop: the program has it ``handled``, it ``ends it``, or it
    is ``ignored``, with the remedy. It is empty where nothing runs or that can't be known.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.inspect web

    name
        The environment.
    """
    return _do(lambda operations: operations.inspect(name))


def start(*names: str) -> bool:
    """
    Start environments that don't run, in parallel. One whose declaration says ``state: stopped`` runs, also
    over a reboot, until it is stopped or its declaration is applied again.

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
    until they are started or their declaration is applied again. To have one stopped for good, declare
    ``state: stopped``.

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


def wait(*names: str, timeout: float = 60) -> dict[str, dict[str, Any]]:
    """
    Wait until environments are healthy or, where they declare no health check, run.

    Returns what :py:func:`list <list_>` tells of them then. One that isn't in time, or that has ended and is
    not started again, is an error, which says how it is.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.wait orders timeout=120

    names
        The environments.

    timeout
        Seconds. Defaults to 60.
    """
    return _do(lambda operations: operations.wait(_names(names), timeout=float(timeout)))


def retry(*names: str) -> bool:
    """
    Let the next apply try updates again that were taken back since they did not become healthy. Without this
    they are tried when the declaration or the image has changed.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.retry web

    names
        The environments.
    """
    _do(lambda operations: operations.retry(_names(names)))
    return True


def exec_(
    name: str, *words: Any, command: list[str] | str | None = None, timeout: float = 60, stdin: str = ""
) -> dict[str, Any]:
    """
    Run a command inside a running environment, as its user, with its limits and filter.

    Returns ``retcode``, ``stdout`` and ``stderr``; at most 1 MiB of each.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.exec web cat /etc/os-release
        salt '*' netspace_environment.exec web '["/bin/sh", "-c", "echo $HOME"]'

    name
        The environment.

    words
        The program and its arguments: words, one text that is split as a shell splits it, or a list.
        **There is no shell** unless you name one. Salt reads ``name=value`` as an option: use a list there.

    command
        The same in one: a text or a list.

    timeout
        Seconds after which the command is killed. Defaults to 60.

    stdin
        What the command reads.
    """
    given = words[0] if len(words) == 1 else words
    arguments = _argument_vector(given if command is None else command)
    return _do(lambda operations: operations.exec(name, arguments, timeout=timeout, stdin=stdin))


def logs(name: str, lines: int = 100, since: str | float | None = None) -> list[str]:
    """
    Return the last lines that an environment's program wrote.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.logs web lines=20
        salt '*' netspace_environment.logs web since=600

    name
        The environment.

    lines
        How many at most. Defaults to 100.

    since
        Leave out what was written before: a number of seconds ago, or a time such as ``2026-01-31T12:00:00``,
        which is the host's own where it has no offset. **Only where systemd runs**: the log files that netspace
        writes elsewhere have no times, and ``since`` is an error there.
    """
    found: list[str] = _do(lambda operations: operations.logs(name, lines, since))["lines"]
    return found


def audit(name: str, summary: bool = False) -> list[dict[str, str]] | dict[str, Any]:
    """
    Try to break out of an environment, in more than a hundred ways, and tell what came of it.

    The attempts are made in a throw-away twin of it, which attacks a second one: the same image,
    system call profile, limits, user, hardening and kind of interface, but none of its data,
    variables, volumes or credentials. The environment itself is not touched. It takes some
    seconds, in which nothing else of netspace is changed on this host.

    Returns a row for each attempt: ``name``, ``group`` (files, locks, memory, processes, namespaces,
    kernel, devices, network, broker, time, resources), ``outcome`` and ``detail``. The outcome is
    ``refused`` (good), ``succeeded`` (**isolation is broken**) or ``skipped`` (there was nothing to
    try it on; the detail says why). Where anything succeeded the return code is not 0.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.audit web
        salt '*' netspace_environment.audit web summary=True

    name
        The environment. It need not run.

    summary
        Return ``comment``, the number of attempts by outcome, and those rows alone that succeeded.
        Defaults to False.
    """
    from netspace import audit as auditing

    try:
        rows = auditing.audit(Host(declared.layout(__opts__)), name, declared.network(__pillar__))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    succeeded = [row for row in rows if row["outcome"] == "succeeded"]
    if succeeded:
        __context__["retcode"] = 2
    if not summary:
        return rows
    counts = {
        kind: len([row for row in rows if row["outcome"] == kind]) for kind in ("refused", "succeeded", "skipped")
    }
    verdict = "ISOLATION IS BROKEN" if succeeded else "all that could be tried was refused"
    comment = f"{verdict}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"comment": comment, **counts, "rows": succeeded}


def exhaust(name: str, summary: bool = False, waiting: bool = True) -> list[dict[str, Any]] | dict[str, Any]:
    """
    Have an environment take all that it can get of what is the host's and others', and tell who went short.

    This is done by a throw-away twin of it, as in :py:func:`audit <audit>`, while this host's root and a second
    twin, its neighbour, each try to have a little of the same. It takes about a minute, in which nothing else of
    netspace is changed on this host; **whatever the twin wins is gone for all others meanwhile**, so choose the hour.

    Returns a row for each pool of the kernel's that a program draws from (``group`` is ``pools``), with ``name``,
    ``outcome`` and ``detail``, how many units the twin has ``taken``, by which error that ``ended``, and how many of
    the 16 units that they ask for ``root`` and the ``neighbour`` got before, during and after it; where the
    kernel counts the pool for the whole host, ``host`` has that. The outcome is

    - ``held``: the twin was refused at some point, and nobody else went short;
    - ``leak``: root or the neighbour got fewer than before, or the pool of the whole host was used up;
    - ``open``: nothing refused the twin as far as it went, and nobody went short. What bounds that
      pool is not shown;
    - ``skipped``: there is no such pool here.

    And a row for each way to make others wait (``group`` is ``waiting``), with the ``seconds`` of each of these alone
    and meanwhile: an ``answer`` of the neighbour's (the 99th percentile of 200), an ``exec`` in it, its ``restart``,
    and a ``look`` at all environments, with which each apply begins. ``slow`` says that one of them
    took more than 1.5 times as long as alone (an answer: twice), and over 20 ms; else it ``held``.

    Where anything leaks the return code is not 0.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.exhaust web
        salt '*' netspace_environment.exhaust web summary=True

    name
        The environment. It need not run.

    summary
        Return ``comment``, the number of rows by outcome, and those rows alone that did not hold.
        Defaults to False.

    waiting
        Make others wait, too. Defaults to True.
    """
    import msgspec

    from netspace import exhaustion

    try:
        instance = Host(declared.layout(__opts__))
        found = exhaustion.exhaust(instance, name, declared.network(__pillar__), waiting=bool(waiting))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    rows: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in found]
    counts = {kind: len([row for row in found if row.outcome == kind]) for kind in exhaustion.OUTCOMES}
    if counts["leak"]:
        __context__["retcode"] = 2
    if not summary:
        return rows
    verdict = "OTHERS GO SHORT" if counts["leak"] else "nobody else went short"
    comment = f"{verdict}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"comment": comment, **counts, "rows": [row for row in rows if row["outcome"] in ("leak", "open", "slow")]}


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
        Drop unread mail too, **and volumes that have a size** (never a host folder). By default mail is
        parked and volumes are kept.
    """
    wanted = _names(names)
    _do(lambda operations: [operations.inspect(name) for name in wanted])  # an unknown name is an error
    try:
        result = Host(declared.layout(__opts__)).remove_environments(wanted, purge=purge)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    return _each({f"{failure.step}": failure.error for failure in result.failures})
