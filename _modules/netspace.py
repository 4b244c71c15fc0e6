"""
One host as a whole
===================

An overview of the host, checks of its declaration and of the host itself, and the removal of everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import __version__  # noqa: E402
from netspace.errors import NetspaceError, SpecError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, refusal, state_return  # noqa: E402

if TYPE_CHECKING:
    from netspace.spec.types import Declaration

    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]


__virtualname__ = "netspace"
__outputter__ = dict.fromkeys(
    (
        *("check", "check_host", "overview", "glance", "explain", "refused", "can", "paths_to", "diff", "drift"),
        "teardown",
    ),
    "netspace",
)

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def overview() -> dict[str, Any]:
    """
    Return this host's environments with their interfaces, its links and its trust, and whether a supervisor
    restarts programs that end (``supervised``).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.overview
    """
    try:
        return Host(arguments.layout(__opts__)).overview()
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def glance() -> dict[str, Any]:
    """
    Return this host's trust and the state of its environments and links, in few words. Changes nothing.

    The master asks all hosts for this at once (``salt-run netspace_fleet.status``). Returns ``trust``;
    ``environments`` and ``links`` by name, each with its ``state``; ``refused``, the newest refusals of each
    environment with ``audit: true``; and ``problems``, such as what can't be read.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.glance
    """
    from netspace.host import glance as work

    try:
        return work.glance(Host(arguments.layout(__opts__)))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def explain(name: str) -> dict[str, Any]:
    """
    Explain on one screen why an environment runs or doesn't, and name the command that would help. Changes nothing.

    Returns ``summary`` and, as data, everything that it follows from:

    - ``findings``: the reasons, the most important first. Each has ``code`` (a word that does not change), ``severity``
      (``error``, ``warning`` or ``note``), ``text``, ``advice``, ``command`` (a function of Salt with its arguments),
      and ``depends_on``, if another environment is the cause;
    - ``pillar`` (whether it is declared there), ``declared_state``, ``restart``, ``image``, ``digest``, ``trust``;
    - ``state``, ``health``, ``since``, ``after`` (by environment, whether it is ready), ``last_exit``, ``restarts``;
    - ``limits``: what is used, and how often a limit stopped it; ``interface``; ``links``; ``log``, the last lines;
    - ``host``: what it ``may`` ask the host for, and its ``uses`` since the host was started, by verb and result.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.explain web

    name
        The environment.
    """
    from netspace.host import explain as explanation

    wanted, invalid = None, ""
    try:
        if "netspace" in __pillar__:
            wanted = arguments.whole(None, __pillar__)
    except SpecError as err:
        invalid = f"invalid ({len(err.problems)} problems): see netspace.check"
    try:
        return explanation.explain(Host(arguments.layout(__opts__)), name, wanted, invalid)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def refused(name: str) -> dict[str, Any]:
    """
    Return what an environment with ``audit: true`` was refused. Changes nothing.

    Returns ``rows``, the oldest first. Each has ``kind`` (``packets``, ``messages``, ``system calls`` or ``files``),
    ``what``, ``count``, ``first`` and ``last`` (seconds since the epoch), ``permitted_now`` (whether what was applied
    permits it by now), and ``why``, if no declaration can permit it. ``not_recorded`` has the reason for each kind that
    isn't recorded.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.refused web

    name
        The environment.
    """
    from netspace.host import refused as record

    try:
        return record.refused(Host(arguments.layout(__opts__)), name)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def suggest(name: str) -> str:
    """
    Return the lines of a declaration, as YAML, that would permit what an environment was refused. Changes nothing.

    No line for packets or messages permits more than what was refused. A comment before each line says how often, and
    ``RISKY`` with the reason if it opens more than a service of the Internet. Settings of the whole environment
    (``seccomp``, ``read_only``) are always marked so. Keep the lines that the environment needs, put them into
    pillar, and apply. The page :doc:`audit </audit>` has an example.

    CLI Example:

    .. code-block:: bash

        salt-call --out=netspace_text netspace.suggest web

    name
        The environment.
    """
    from netspace.host import refused as record

    try:
        return record.suggestion(Host(arguments.layout(__opts__)), name)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _reached(answer: Callable[[Host, Declaration | None], T], declared: bool) -> T:
    """Return an answer to who may reach whom, from the declaration in pillar or from what was applied last."""
    try:
        return answer(Host(arguments.layout(__opts__)), arguments.whole(None, __pillar__) if declared else None)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def can(source: str, target: str, declared: bool = False) -> dict[str, Any]:
    """
    Tell whether one end may reach another by messages or packets, and by which rule. Changes nothing.

    Returns ``can`` (whether it may begin: send a message, or open a connection), ``answers`` (whether it may answer
    what the other began), ``rules``, ``why_not`` (if no rule allows it, the reason for messages and for packets), and
    ``through`` (if no rule allows it directly, the steps of the shortest path by way of other environments). Each rule
    has ``by``, ``rule`` (its path in the declaration) and ``what`` (the traffic that it allows). The page
    :doc:`reachability </reachability>` has the details.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.can web orders
        salt h1 netspace.can web 198.51.100.7
        salt h1 netspace.can 203.0.113.0/24 web declared=True

    source
        An environment, an environment of another host (``orders@h2``), or an address or network outside. A network
        counts as reached if one of its addresses is reached.

    target
        Likewise. One of the two must be an environment of this host.

    declared
        Answer for ``pillar:netspace`` in place of what was applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.can(host, source, target, wanted), declared)


def paths_to(name: str, declared: bool = False) -> dict[str, Any]:
    """
    Return everything that may reach an end, directly or by way of other environments. Changes nothing.

    Returns ``paths``. Each has ``from``, ``through`` (the environments between, whose programs would have to forward
    the data), ``answers`` (whether a step only answers) and ``rules``, a rule for each step.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.paths_to orders

    name
        An environment, an environment of another host (``orders@h2``), or an address or network outside.

    declared
        Answer for ``pillar:netspace`` in place of what was applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.paths_to(host, name, wanted), declared)


def graph(form: str = "mermaid", declared: bool = False) -> str:
    """
    Return a picture of who may reach whom on this host, as text. Changes nothing.

    It has the environments, and an arrow for each rule by which one end may send a message or open a connection.

    CLI Example:

    .. code-block:: bash

        salt-call --out=netspace_text netspace.graph
        salt-call --out=netspace_text netspace.graph form=html > reach.html
        salt-call --out=netspace_text netspace.graph form=dot | dot -Tsvg > reach.svg

    form
        ``mermaid``, ``dot`` (Graphviz), or ``html``: one page with a drawing, a search and details, which needs
        nothing else. Defaults to ``mermaid``.

    declared
        Draw ``pillar:netspace`` in place of what was applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.graph(host, form, wanted), declared)


def diff(declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Return what differs between this host and its declaration: what ``state.apply netspace`` would change. Changes
    nothing.

    Returns the same data for programs that a terminal shows as a table:

    - ``differences``: a row for each key of each thing, with ``kind``, ``name``, ``action`` (what an apply would do),
      ``key``, ``old`` (the value on the host), ``new`` (the value declared) and ``reason``. ``key`` is empty if
      ``reason`` alone tells the difference;
    - ``refused``: what an apply would not do, with ``kind``, ``name`` and ``message``;
    - ``notes``; ``differs`` (whether there is any of the former two); ``compared_with``; ``compared``, the time.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.diff

    declaration
        The declaration. Defaults to ``pillar:netspace``.
    """
    import time

    from netspace.plugin import differences
    from netspace.plugin.fileserver import SaltFiles

    try:
        wanted = arguments.whole(declaration, __pillar__)
        plan = Host(arguments.layout(__opts__), remote=SaltFiles(__salt__, __opts__)).diff(wanted)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return differences.told(plan, "declaration", time.time())


def drift() -> dict[str, Any]:
    """
    Return what differs on this host from the last apply: what was changed by hand, is gone, or no longer runs.
    Changes nothing.

    Needs no declaration: it compares with what was recorded when it was applied. Returns the same form as
    :py:func:`diff`; ``new`` is the value that was applied. An environment that an operator stopped or started
    against its declaration is a difference, too.

    The return code is 1 if anything differs, so that a pipeline or a monitor notices.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.drift
    """
    import time

    from netspace.plugin import differences

    try:
        plan = Host(arguments.layout(__opts__)).drift()
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    found = differences.told(plan, "last apply", time.time())
    if found["differs"]:
        __context__["retcode"] = 1
    return found


def metrics(file: str = "") -> str | dict[str, Any]:
    """
    Return the metrics of this host as OpenMetrics text, or write them for node_exporter. Changes nothing else.

    The page :doc:`metrics </metrics>` has all names. Each label is a name of the declaration or a fixed word, and no
    value is a secret.

    CLI Example:

    .. code-block:: bash

        salt-call --local --out=netspace_text netspace.metrics
        salt '*' netspace.metrics file=/var/lib/prometheus/node-exporter/netspace.prom

    file
        Write them to this file in place of returning them, in the form that node_exporter's textfile collector reads,
        and return ``file`` and ``size``. It must end in ``.prom``. It is replaced as a whole; **a file that netspace
        did not write is refused.**
    """
    from pathlib import Path

    from netspace import openmetrics
    from netspace.host import metrics as work

    try:
        host = Host(arguments.layout(__opts__))
        if file:
            return {"file": str(file), "size": work.write(host, Path(str(file)))}
        return openmetrics.text(work.families(host))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def version() -> str:
    """
    Return the version of the netspace library that this minion uses.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.version
    """
    return __version__


def check(declaration: dict[str, Any] | None = None, host: bool = True) -> dict[str, Any]:
    """
    Check whether a declaration can be applied on this host: ``{valid, problems: [{path, message}]}``.

    Changes nothing. The return code is 1 if there is a problem, so that a pipeline stops.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check
        salt-call --local netspace.check host=False

    declaration
        The declaration. Defaults to ``pillar:netspace``.

    host
        Check against the host too, as ``state.apply netspace test=True`` does: a missing image, program or parent of
        an interface is a problem. ``False`` checks the declaration alone. Defaults to ``True``.
    """
    problems: list[dict[str, str]] = []
    try:
        wanted = arguments.whole(declaration, __pillar__)
        for name in arguments.unaddressable(wanted, __opts__, __pillar__):
            problems.append(
                {"path": f"netspace:environments:{name}:target", "message": arguments.addressable(__opts__)}
            )
        if host:
            problems += [problem._asdict() for problem in Host(arguments.layout(__opts__)).check(wanted)]
    except SpecError as err:
        problems = [problem._asdict() for problem in err.problems]
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    if problems:
        __context__["retcode"] = 1
    return {"valid": not problems, "problems": problems}


def check_host(summary: bool = False) -> list[dict[str, str]] | dict[str, Any]:
    """
    Return the settings of this host that weaken the isolation of environments, with remedies. Changes nothing.

    Returns a row for each setting of the kernel, and for each weakness of the processor that the kernel knows:
    ``name``, ``outcome``, ``found`` (the value), ``expected``, ``matters``, ``why`` (the consequence of another
    value) and ``remedy``. The outcome is ``good``, ``weak`` or ``unknown`` (the value can't be read, or is not
    conclusive; **that is not good**). ``matters`` is ``environments``; or ``local users``, if it matters only for
    users of the host (the profiles ``strict`` and ``standard`` block it for programs inside); or ``host``, if it
    matters only after an attacker has become root or taken over a service. The page :doc:`isolation </isolation>`
    has the sources of each row.

    The return code is 1 if a row is ``weak``. Root can read more settings than another user.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check_host
        salt '*' netspace.check_host summary=True

    summary
        Return ``comment``, the number of rows by outcome, and only the rows that are not good. Defaults to
        ``False``.
    """
    from netspace.host import weaknesses

    found = weaknesses.look()
    counts = weaknesses.count(found)
    if counts["weak"]:
        __context__["retcode"] = 1
    if not summary:
        return [row._asdict() for row in found]
    comment = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    return {"comment": comment, **counts, "rows": [row._asdict() for row in found if row.outcome != "good"]}


def teardown(test: bool = False) -> dict[str, Any]:
    """
    Remove everything of netspace from this host: environments, links and messages,
    interfaces, broker, images, records. **Only volumes stay.**

    Returns ``{name, result, changes, comment}`` like a state.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.teardown test=True

    test
        Return what would be removed, and remove nothing.
    """
    try:
        result = Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__)).teardown(test=test)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return state_return.state("netspace.teardown", result, test=test)
