"""
One host as a whole
===================

What is there, what a declaration would mean, and how to get rid of all of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import __version__, declared, report  # noqa: E402
from netspace.errors import NetspaceError, SpecError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace"


def __virtual__() -> str:
    return __virtualname__


def overview() -> dict[str, Any]:
    """
    Return this host's environments with their interfaces, its links and its trust, and whether somebody is there
    to start again what ends (``supervised``).

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.overview
    """
    try:
        return Host(declared.layout(__opts__)).overview()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


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
    Say whether a declaration can be applied on this host: ``{valid, problems: [{path, message}]}``.

    Changes nothing. The return code is 1 where there is a problem, so that a pipeline stops at it.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check
        salt-call --local netspace.check host=False

    declaration
        By default, what ``pillar:netspace`` says.

    host
        Look at the host too, as ``state.apply netspace test=True`` does: an image, a program or the parent of an
        interface that is missing is a problem. ``False`` looks at nothing but the declaration. Defaults to ``True``.
    """
    problems: list[dict[str, str]] = []
    try:
        wanted = declared.whole(declaration, __pillar__)
        for name in declared.unaddressable(wanted, __opts__, __pillar__):
            problems.append({"path": f"netspace:environments:{name}:target", "message": declared.addressable(__opts__)})
        if host:
            problems += [problem._asdict() for problem in Host(declared.layout(__opts__)).check(wanted)]
    except SpecError as err:
        problems = [problem._asdict() for problem in err.problems]
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    if problems:
        __context__["retcode"] = 1
    return {"valid": not problems, "problems": problems}


def check_host(summary: bool = False) -> list[dict[str, str]] | dict[str, Any]:
    """
    Say what on this host weakens the isolation of environments, and what to do about it. Changes nothing.

    Returns a row for each setting of the kernel, and each weakness of the processor that it knows: ``name``,
    ``outcome``, ``found`` (the value), ``expected``, ``matters``, ``why`` (what follows from another value) and
    ``remedy``. The outcome is ``good``, ``weak`` or ``unknown`` (the value can't be read, or says nothing; **that is
    not good**). It ``matters`` for ``environments``, for ``local users`` of the host alone (the profiles ``strict`` and
    ``standard`` keep programs inside from it) or for the ``host``, should somebody have become root or taken over a
    service. What each row rests on is on the page :doc:`isolation </isolation>`.

    The return code is 1 where there is something to mend. Root can read more than another user.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.check_host
        salt '*' netspace.check_host summary=True

    summary
        Return ``comment``, the number of rows by outcome, and those rows alone that are not good. Defaults to
        ``False``.
    """
    from netspace import weaknesses

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
    Remove everything of netspace from this host: environments, links and mail,
    interfaces, broker, images, records. **What lies in volumes stays; all else is gone.**

    Returns ``{name, result, changes, comment}`` as a state would.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace.teardown test=True

    test
        Say what would be removed, and remove nothing.
    """
    try:
        result = Host(declared.layout(__opts__), log.info).teardown(test=test)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    return report.state("netspace.teardown", result, test=test)
