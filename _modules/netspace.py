"""One host as a whole
===================

An overview of the host, checks of its declaration and of the host itself, and the removal of everything that netspace
made.
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
from netspace.plugin import apply_progress, arguments, dates, refusal, state_return  # noqa: E402

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
        *("teardown", "metrics", "tenants"),
    ),
    "netspace",
)

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def overview() -> dict[str, Any]:
    """Return this host's environments with their interfaces, the host's links
    and the host's trust.

    ``supervised`` tells whether each running program has a supervisor,
    which restarts the program when it ends. ``not_made`` lists the
    environments that are declared in pillar, and that no apply has made
    on this host; only if there are any.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.overview
    """
    try:
        found = dates.with_texts(Host(arguments.layout(__opts__)).overview())
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    declared = __pillar__.get("netspace")
    named = declared.get("environments") if isinstance(declared, dict) else None  # a mistake elsewhere doesn't matter
    lacking = [name for name in named or () if name not in found["environments"]] if isinstance(named, dict) else []
    return {**found, "not_made": sorted(map(str, lacking))} if lacking else found


def glance() -> dict[str, Any]:
    """Return a summary of this host's trust and of the state of its
    environments and links. Changes nothing.

    The master calls this function on all hosts at once (``salt-run
    netspace_fleet.status``). Returns ``trust``; ``environments`` and
    ``links`` by name, each with its ``state``; ``refused``, the newest
    refusals of each environment with ``audit: true``; and ``problems``,
    for example files that can't be read.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.glance
    """
    from netspace.host import glance as work

    try:
        return dates.with_texts(work.glance(Host(arguments.layout(__opts__))))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def explain(name: str) -> dict[str, Any]:
    """Explain on one screen why an environment runs or doesn't, and which
    command would help. Changes nothing.

    Returns ``summary`` (one sentence) and the data on which it rests:

    - ``findings``: the reasons, the most important first. Each has
      ``code`` (a word that does not change), ``severity`` (``error``,
      ``warning`` or ``note``), ``text``, ``advice``, ``command`` (a
      function of Salt with its arguments), and ``depends_on``, if
      another environment is the cause;
    - ``pillar`` (whether the environment is declared in pillar),
      ``declared_state``, ``restart``, ``image``, ``digest``, ``trust``;
    - ``state``, ``health``, ``since``, ``after`` (the environments that
      must be ready first: for each, whether it is ready),
      ``last_exit``, ``restarts``;
    - ``limits``: for each limit, the present usage, and how often the
      limit was hit; ``interface``; ``links``; ``log``, the last lines;
    - ``host``: the requests that the environment ``may`` send to the
      host, and the number that it sent since the host was started
      (``uses``, by verb and result).

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.explain web

    name
        The environment.
    """
    from netspace.host import explain as explanation
    from netspace.plugin.fileserver import SaltFiles

    host, wanted, invalid = Host(arguments.layout(__opts__), remote=SaltFiles(__salt__, __opts__)), None, ""
    try:
        if "netspace" in __pillar__:
            wanted = arguments.whole(None, __pillar__)
    except SpecError as err:
        invalid = f"invalid ({len(err.problems)} problems): see netspace.check"
    try:
        return dates.with_texts(explanation.explain(host, name, wanted, invalid))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def refused(name: str) -> dict[str, Any]:
    """Return the accesses that were refused to an environment with ``audit:
    true``. Changes nothing.

    Returns ``rows``, the oldest first. Each has ``kind`` (``packets``,
    ``messages``, ``system calls`` or ``files``), ``what`` (the access,
    as text), ``count``, ``first`` and ``last`` (seconds since the
    epoch), ``first_at`` and ``last_at`` (the same as ISO 8601),
    ``permitted_now`` (whether the last applied declaration
    permits the access), and ``why``, if no declaration can permit the
    access. ``not_recorded`` has the reason for each kind that isn't
    recorded.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.refused web

    name
        The environment.
    """
    from netspace.host import refused as record

    try:
        return dates.with_texts(record.refused(Host(arguments.layout(__opts__)), name))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def suggest(name: str) -> str:
    """Return lines for a declaration, as YAML, that would permit an
    environment's refused accesses. Changes nothing.

    A line for packets or messages permits exactly the refused access. A
    comment before each line says how often the access was refused. The
    comment has ``RISKY`` and the reason if the line opens more than a
    service of the Internet, and always if it changes a setting of the
    whole environment (``seccomp``, ``read_only``). Put the lines that
    the environment needs into pillar, and apply. The documentation's
    page ``audit`` has an example.

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
    """Return the result of a query about who may reach whom.

    :param answer: the query, called with the host and the declaration. Without a declaration, it uses the last applied
        one.
    :param declared: whether to use the declaration in pillar, not the last applied one.
    :raises CommandExecutionError: when the query fails.
    """
    try:
        wanted = arguments.whole(None, __pillar__) if declared else None
        return dates.with_texts(answer(Host(arguments.layout(__opts__)), wanted))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def can(source: str, target: str, declared: bool = False) -> dict[str, Any]:
    """Return whether a source may reach a target by messages or packets, and
    by which rules. Changes nothing.

    Returns ``can`` (whether the source may send a message or open a
    connection), ``answers`` (whether the source may answer a message or
    connection of the target), ``rules``, ``why_not`` (if no rule allows
    it, the reasons for messages and for packets), and ``through`` (if
    no rule allows it directly, the steps of the shortest path through
    other environments). Each rule has ``by``, ``rule`` (its path in the
    declaration), ``what`` (the traffic that it allows) and, if it was
    applied, ``since`` (when its link was made, or when its interface
    was last changed). The documentation's page ``reachability`` has the
    details.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.can web orders
        salt h1 netspace.can web 198.51.100.7
        salt h1 netspace.can 203.0.113.0/24 web declared=True

    source
        An environment (``web``), an environment of another host
        (``orders@h2``), or an IP address or network outside. A network
        counts as reached if one of its addresses is reached.

    target
        The same forms as for ``source``. Source or target must be an
        environment of this host.

    declared
        Use the declaration in ``pillar:netspace``, not the one that was
        applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.can(host, source, target, wanted), declared)


def paths_to(name: str, declared: bool = False) -> dict[str, Any]:
    """Return all sources that may reach a target, directly or through other
    environments. Changes nothing.

    Returns ``paths``. Each has ``from`` (the source), ``through`` (the
    environments on the path, whose programs would have to forward the
    data), ``answers`` (whether some step on the path can only answer a
    message or connection) and ``rules`` (a rule for each step).

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.paths_to orders

    name
        The target: an environment (``web``), an environment of another
        host (``orders@h2``), or an IP address or network outside.

    declared
        Use the declaration in ``pillar:netspace``, not the one that was
        applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.paths_to(host, name, wanted), declared)


def graph(form: str = "mermaid", declared: bool = False) -> str:
    """Return a graph of this host's environments and of who may reach whom, as
    text. Changes nothing.

    The graph has an arrow for each rule that allows sending a message
    or opening a connection.

    CLI Example:

    .. code-block:: bash

        salt-call --out=netspace_text netspace.graph
        salt-call --out=netspace_text netspace.graph form=html \\
            > reach.html
        salt-call --out=netspace_text netspace.graph form=dot \\
            | dot -Tsvg > reach.svg

    form
        ``mermaid``, ``dot`` (Graphviz), or ``html``: one page with a
        drawing, a search and details, which loads no other file.
        Defaults to ``mermaid``.

    declared
        Draw the declaration in ``pillar:netspace``, not the one that
        was applied last. Defaults to ``False``.
    """
    from netspace.host import reach

    return _reached(lambda host, wanted: reach.graph(host, form, wanted), declared)


def tenants() -> dict[str, Any]:
    """Return the tenants of ``pillar:netspace`` with their quotas, and the
    use of these quotas. Changes nothing.

    Returns a row for each tenant, by name:

    - ``quota``: for each resource, ``declared`` (the sum of the limits
      that its environments declare) and ``most`` (the quota), written
      as in a declaration;
    - ``environments``: those that were applied, and ``running``, the
      number of those that run;
    - ``names`` (the names that its environments may have) and
      ``reaches`` (the tenants that it may reach).

    The documentation's page ``tenants`` has the details.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace.tenants
    """
    from netspace.host import tenants as view

    try:
        return view.told(Host(arguments.layout(__opts__)), arguments.whole(None, __pillar__))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def diff(declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the changes that ``state.apply netspace`` would make on this
    host. Changes nothing.

    A terminal shows the result as a table. As data, it has:

    - ``differences``: a row for each differing key of an environment,
      link or other thing, with ``kind``, ``name``, ``action`` (what an
      apply would do), ``key``, ``old`` (the value on the host), ``new``
      (the value declared) and ``reason``. ``key`` is empty if no single
      key differs; then ``reason`` describes the difference;
    - ``refused``: the steps that an apply would refuse, with ``kind``,
      ``name`` and ``message``;
    - ``notes``; ``differs`` (whether ``differences`` or ``refused`` has
      a row); ``compared_with``; ``compared``, the time.

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
        files, reading = SaltFiles(__salt__, __opts__), apply_progress.reading(__opts__, __salt__)
        plan = Host(arguments.layout(__opts__), remote=files, **reading).diff(wanted)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return differences.told(plan, "declaration", time.time())


def drift() -> dict[str, Any]:
    """Return the differences between this host and the last apply. Changes
    nothing.

    A difference is a setting that somebody changed, a thing that is
    gone, or a program that no longer runs.

    An environment that an operator stopped or started against its
    declaration is a difference, too.

    The function compares the host with the records of the last apply,
    so it needs no declaration. Returns the same form as
    ``netspace.diff``; ``new`` is the value that was applied.

    The return code is 1 if anything differs, so that a pipeline or a
    monitor notices.

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
    """Return the metrics of this host as OpenMetrics text, or write them for
    node_exporter. Changes nothing else.

    A terminal shows them as a table; ``--out=netspace_text`` shows the
    text. The documentation's page ``metrics`` has all names. The values
    of labels are names from the declaration or fixed words. No value is
    a secret.

    CLI Example:

    .. code-block:: bash

        salt-call --local --out=netspace_text netspace.metrics
        salt '*' netspace.metrics \\
            file=/var/lib/prometheus/node-exporter/netspace.prom

    file
        Write the metrics to this file, in the form that node_exporter's
        textfile collector reads, and return ``file`` and ``size``
        (bytes). The name must end in ``.prom``. An existing file is
        replaced as a whole; **a file that netspace did not write is
        refused.**
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
    """Return whether a declaration can be applied on this host: ``{valid,
    problems: [{path, message}]}``.

    Changes nothing. The return code is 1 if there is a problem, so that
    a pipeline stops.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check
        salt-call --local netspace.check host=False

    declaration
        The declaration. Defaults to ``pillar:netspace``.

    host
        Also check against the host, as ``state.apply netspace
        test=True`` does: a missing image, program or parent of an
        interface is a problem. ``False`` checks the declaration alone.
        Defaults to ``True``.
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
    """Return the settings of this host that weaken the isolation of
    environments, with remedies. Changes nothing.

    Returns a row for each setting of the kernel, and for each weakness
    of the processor that the kernel knows: ``name``, ``outcome``,
    ``found`` (the value), ``expected``, ``matters``, ``why`` (the
    consequence of another value) and ``remedy``. The outcome is
    ``good``, ``weak`` or ``unknown`` (the value can't be read, or is
    not conclusive; **that is not good**). ``matters`` names who is at
    risk: ``environments``; ``local users`` (only users of the host: for
    programs in environments, the profiles ``strict`` and ``standard``
    block the attack); or ``host`` (only after an attacker has become
    root or taken over a service). The documentation's page
    ``isolation`` has the sources of each row.

    The return code is 1 if a row is ``weak``. Root can read more
    settings than another user.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check_host
        salt '*' netspace.check_host summary=True

    summary
        Return ``comment``, the number of rows by outcome, and only the
        rows that are not good. Defaults to ``False``.
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
    """Remove everything of netspace except volumes from this host.

    The function removes environments, links and messages, interfaces,
    broker, images and records. **Only volumes stay.**

    Returns ``{name, result, changes, comment}`` like a state.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.teardown test=True

    test
        Return what would be removed, and remove nothing. If there is
        something, ``result`` is ``None``, so ``salt-call`` exits with
        1.
    """
    try:
        result = Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__)).teardown(test=test)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return state_return.state("netspace.teardown", result, test=test)
