"""Isolated environments
=====================

See, start, stop and enter the environments of a host. The environments are declared in pillar or by
``netspace_environment`` states.

Only starting and entering an environment needs ``crun``. If a function needs a program that is not installed, its error
names the program.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, dates, refusal  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_environment"
__func_alias__ = {"list_": "list", "exec_": "exec"}
__outputter__ = dict.fromkeys(("list_", "wait", "inspect", "audit", "exhaust"), "netspace")

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def _do(action: Callable[[Any], T]) -> T:
    try:
        return action(Host(arguments.layout(__opts__)).operations)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _each(outcomes: dict[str, str]) -> bool:
    """Tell Salt that its targets may have changed, and return True. Raise if *outcomes* has errors.

    :raises CommandExecutionError: when *outcomes* has errors; the text has all of them.
    """
    arguments.tell_targets(__salt__, __opts__, __pillar__)
    failed = {name: error for name, error in outcomes.items() if error}
    if failed:
        raise CommandExecutionError(
            refusal.told(__opts__, "\n".join(f"{name}: {error}" for name, error in failed.items()))
        )
    return True


def _argument_vector(given: Any) -> list[str]:
    """Return an argument vector. A text is split as a shell splits words; a list is used unchanged."""
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
    """Return every environment with its state.

    Each row, by name, has

    - ``state``: running, starting, stopped, failed, or frozen (stopped
      by a signal);
    - ``health``: healthy, starting, unhealthy or unknown; empty if
      there is no health check, or the environment doesn't run;
    - ``flapping``: whether the environment ends and is restarted again
      and again;
    - ``pid``, ``since`` (seconds since the epoch), ``since_at`` (the
      same as ISO 8601), ``restarts``;
    - ``exit``: how the environment last ended; ``oom`` means that it
      was killed for lack of memory;
    - ``oom_kills``: the number of the environment's processes that the
      kernel killed for lack of memory since the last start was
      requested;
    - ``image``, ``digest``, ``runtime``;
    - ``wanted``: the desired state, which the declaration or an
      operator set;
    - ``declared_stopped``: whether the declaration says ``state:
      stopped``;
    - ``updating``: whether an update has started a second instance
      beside the first;
    - ``supervised``: whether the supervisor runs, which restarts the
      environment when it ends;
    - ``problem``: why the environment doesn't run or is unhealthy, if
      the reason is known;
    - ``parent``: the environment that may start this one as its child;
      only if there is one;
    - ``tenant``: the tenant to which it belongs; only if there is one.

    If the record of an environment is damaged, the row has only the
    values of the environment's service, and ``problem`` has the remedy.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.list
    """
    return dates.with_texts(_do(lambda operations: operations.list()))


def inspect(name: str) -> dict[str, Any]:
    """Return all data on one environment, except the values of its
    variables.

    The result has the row of ``netspace_environment.list``, and the
    declaration, ids, namespace, folders and usage.

    ``sigterm`` is the effect of the SIGTERM that a stop sends, with an
    explanation: ``handled`` (by the program), ``ends it``, ``ignored``
    or ``blocked``. ``sigterm`` is empty if nothing runs or the effect
    can't be known.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.inspect web

    name
        The environment.
    """
    return dates.with_texts(_do(lambda operations: operations.inspect(name)))


def start(*names: str) -> bool:
    """Start environments that don't run, in parallel.

    An environment that is declared with ``state: stopped`` starts, too.
    It then runs, also after a reboot, until it is stopped or its
    declaration is applied again.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.start web orders

    names
        The environments.
    """
    return _each(_do(lambda operations: operations.start(_names(names))))


def stop(*names: str) -> bool:
    """Stop environments and wait until they have ended.

    They stay stopped, also after a reboot, until they are started or
    their declaration is applied again. To keep an environment stopped,
    declare ``state: stopped``.

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


def wait(*names: str, timeout: float = 60, **others: object) -> dict[str, dict[str, Any]]:
    """Wait until environments are healthy. An environment without a health
    check only has to run.

    Returns the environments' rows of ``netspace_environment.list``. The
    function fails if an environment isn't ready in time, or has ended
    and is not started again; the error has the environment's state.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.wait orders timeout=120

    names
        The environments.

    timeout
        Seconds. Defaults to 60.
    """
    arguments.refuse_others(others)
    return dates.with_texts(_do(lambda operations: operations.wait(_names(names), timeout=float(timeout))))


def retry(*names: str) -> bool:
    """Let the next apply try rolled-back updates again.

    netspace rolls an update back if the updated environment does not
    become healthy. Without this function, an apply tries the update
    again only if the declaration or the image has changed.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.retry web

    names
        The environments.
    """
    _do(lambda operations: operations.retry(_names(names)))
    return True


def exec_(
    name: str,
    *words: Any,
    command: list[str] | str | None = None,
    timeout: float = 60,
    stdin: str = "",
    **others: object,
) -> dict[str, Any]:
    """Run a command inside a running environment, with the environment's
    user, limits and system call filter.

    Returns ``retcode``, ``stdout`` and ``stderr``; at most 1 MiB of
    each.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.exec web cat /etc/os-release
        salt '*' netspace_environment.exec web \\
            '["/bin/sh", "-c", "echo $HOME"]'

    name
        The environment.

    words
        The program and its arguments: words, one text that is split as
        a shell splits it, or a list. **The command is not run by a
        shell**; for a shell's features, run a shell. Salt takes
        ``name=value`` for an option, so give such arguments in a list.

    command
        The program and its arguments in one value, a text or a list, in
        place of ``words``.

    timeout
        Seconds after which the command is killed. Defaults to 60.

    stdin
        The command's standard input.
    """
    arguments.refuse_others(others)
    given = words[0] if len(words) == 1 else words
    vector = _argument_vector(given if command is None else command)
    return _do(lambda operations: operations.exec(name, vector, timeout=timeout, stdin=stdin))


def logs(name: str, lines: int = 100, since: str | float | None = None, times: bool = False) -> list[str]:
    """Return the last lines that an environment's program wrote.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.logs web lines=20
        salt '*' netspace_environment.logs web since=600 times=True

    name
        The environment.

    lines
        The number of lines at most. Defaults to 100.

    since
        Return only lines after this time: a number of seconds ago, or a
        time such as ``2026-01-31T12:00:00``, which is local time if it
        has no offset.

    times
        Show when each line was written, and when the program was
        started. A line of the program is ``TIME | line``, a start is
        ``TIME = start``. ``TIME`` is ISO 8601 in UTC, such as
        ``2026-01-31T12:00:00.250+00:00``. It is ``-`` for a line that
        an earlier version wrote to a file. On a host without systemd, a
        time may be a tenth of a second too early. The program can forge
        neither a time nor a start. Defaults to False.
    """
    found: list[str] = _do(lambda operations: operations.logs(name, lines, since, times))["lines"]
    return found


def audit(name: str, summary: bool = False) -> list[dict[str, str]] | dict[str, Any]:
    """Try to break out of an environment, in more than a hundred ways, and
    return the results.

    The attempts run in a temporary copy of the environment (a twin),
    which attacks a second twin. A twin has the environment's image,
    system call profile, limits, user, hardening and kind of interface,
    but none of its data, variables, volumes or credentials. The
    environment itself is not touched. The audit takes some seconds;
    meanwhile netspace changes nothing else on this host.

    Returns a row for each attempt: ``name``, ``group`` (files, locks,
    memory, processes, namespaces, kernel, devices, network, broker,
    time, resources), ``outcome`` and ``detail``. The outcome is
    ``refused`` (good), ``succeeded`` (**isolation is broken**) or
    ``skipped`` (there was no target; the detail says why). If any
    attempt succeeded, the return code is not 0.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.audit web
        salt '*' netspace_environment.audit web summary=True

    name
        The environment. It need not run.

    summary
        Return ``comment``, the number of attempts by outcome, and only
        the rows of attempts that succeeded. Defaults to False.
    """
    from netspace.host import audit as auditing

    try:
        rows = auditing.audit(Host(arguments.layout(__opts__)), name, arguments.network(__pillar__))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    succeeded = [row for row in rows if row["outcome"] == "succeeded"]
    if succeeded:
        __context__["retcode"] = 2
    if not summary:
        return rows
    counts = {
        kind: len([row for row in rows if row["outcome"] == kind]) for kind in ("refused", "succeeded", "skipped")
    }
    verdict = "ISOLATION IS BROKEN" if succeeded else "all attempts were refused"
    comment = f"{verdict}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"comment": comment, **counts, "rows": succeeded}


def exhaust(
    name: str, summary: bool = False, waiting: bool = True, services: bool = True, only: str | list[str] | None = None
) -> list[dict[str, Any]] | dict[str, Any]:
    """Test whether an environment can exhaust shared resources or disturb
    services; return the effect on other programs.

    A temporary copy of the environment (a twin, as in
    ``netspace_environment.audit``) takes all units that it can get from
    a pool of the kernel. At the same time, this host's root and a
    second twin, the neighbour, each ask for a few units of the same
    pool. The test takes about five minutes, during which netspace
    changes nothing else on this host. **All programs on this host lack
    the units that the twin holds**, so choose a quiet hour.

    Returns a row for each pool (``group`` is ``pools``): ``name``,
    ``outcome``, ``detail``, ``taken`` (the number of units that the
    twin got) and ``ended`` (the error that stopped the twin). ``root``
    and ``neighbour`` have the number of units, of 16 requested units,
    that each got before, during and after the twin's load. If the
    kernel counts the pool for the whole host, ``host`` has these
    counts. The outcome is

    - ``held``: the twin hit a limit, paid with its own memory, or took
      nothing from the host's pool; and root and the neighbour got as
      many units as before;
    - ``leak``: root or the neighbour got fewer units than before, or
      the pool of the whole host was used up;
    - ``open``: the twin hit no limit, and root and the neighbour got as
      many units as before. The test doesn't show whether the pool has a
      limit;
    - ``skipped``: this kernel has no such pool.

    Also returns a row for each load that makes other programs wait
    (``group`` is ``waiting``). ``seconds`` has the durations of four
    operations, each without and under the load: an ``answer`` of the
    neighbour (the 99th percentile of 200 answers), an ``exec`` in the
    neighbour, a ``restart`` of the neighbour, and a ``look`` at all
    environments, with which each apply begins. The outcome is ``slow``
    if an operation under load took over 20 ms and more than 1.5 times
    as long as without the load (an answer: more than twice as long).
    Otherwise the outcome is ``held``.

    Also returns a row for each attack on a service of the host
    (``group`` is ``services``): the forwarder, the broker, the log, the
    health watcher, the supervisor, ``exec``. For these attacks, the
    test makes ordinary environments like this one, named ``audit-...``,
    and removes them afterwards. ``seconds`` has the durations of an
    ``answer`` (as above, but along a link), an ``exec``, an ``apply``
    that makes one more environment, a ``restart``, the time until the
    neighbour is healthy again (``health``), and reading a log
    (``logs``). The outcome is ``slow`` as above, and ``leak`` if such
    an operation of another environment failed, or a service was
    restarted. Attacks that need a broker are ``skipped`` if no links
    are declared, or the broker isn't netspace's own.

    If the outcome of any row is ``leak``, the return code is not 0.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.exhaust web
        salt '*' netspace_environment.exhaust web summary=True
        salt '*' netspace_environment.exhaust web only='[forks]'

    name
        The environment. It need not run.

    summary
        Return ``comment``, the number of rows by outcome, and only the
        rows with ``leak``, ``open`` or ``slow``. Defaults to False.

    waiting
        Also measure how long others wait under load. Defaults to True.
        With False, services are left out, too.

    services
        Also try the attacks on services. Defaults to True.

    only
        The rows to try, by their names. Defaults to all.
    """
    import msgspec

    from netspace.host import exhaustion, service_exhaustion

    try:
        instance = Host(arguments.layout(__opts__))
        chosen = None if only is None else service_exhaustion.chosen(only)
        found = exhaustion.exhaust(instance, name, arguments.network(__pillar__), bool(waiting), chosen)
        if waiting and services:
            found += service_exhaustion.exhaust(instance, name, chosen)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    rows: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in found]
    counts = {kind: len([row for row in found if row.outcome == kind]) for kind in exhaustion.OUTCOMES}
    if counts["leak"]:
        __context__["retcode"] = 2
    if not summary:
        return rows
    verdict = "OTHERS GO SHORT" if counts["leak"] else "nobody else lacked resources"
    comment = f"{verdict}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"comment": comment, **counts, "rows": [row for row in rows if row["outcome"] in ("leak", "open", "slow")]}


def remove(*names: str, purge: bool = False, **others: object) -> bool:
    """Remove environments with their links, layers, namespaces and
    interfaces. Their volumes stay.

    **An environment that is still declared comes back at the next
    apply.**

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_environment.remove web

    names
        The environments.

    purge
        Also delete unread mail **and volumes that have a size** (never
        a host folder). By default, unread mail and volumes are kept.
    """
    arguments.refuse_others(others)
    wanted = _names(names)
    _do(lambda operations: [operations.inspect(name) for name in wanted])  # an unknown name is an error
    try:
        host = Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__))
        result = host.remove_environments(wanted, purge=purge)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return _each({f"{failure.step}": failure.error for failure in result.failures})
