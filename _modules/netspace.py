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
