"""Service that replaces certificates before they expire, in case no apply runs for days.

The service is a shell that sleeps (it needs less than a megabyte) and runs ``python -m netspace renew`` each hour
(:mod:`netspace.host.renew`). An apply renews certificates, too.
"""

from __future__ import annotations

from netspace import library_copy
from netspace.errors import raise_any
from netspace.layout import Layout
from netspace.supervision.service import Service, Status, Supervisor

NAME = "renewer"
PAUSE = 3600

_LOOP = 'while sleep "$0"; do "$@"; done'


def service(layout: Layout) -> Service:
    return Service(
        name=NAME,
        command=("/bin/sh", "-c", _LOOP, str(PAUSE), *library_copy.command(layout, "renew")),
        description=f"Renewal of the certificates of {layout.instance}'s links",
        variables={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        stop_timeout=5.0,
        log=layout.logs / "renewer.log",
    )


def lacking(status: Status | None, wanted: bool) -> dict[str, dict[str, str | None]]:
    """Return the change that the service needs; empty if it needs none.

    :param wanted: whether the service must run; if false, it must be removed.
    """
    state = None if status is None else status.state
    if wanted and state not in ("running", "starting"):
        return {"renewal of certificates": {"old": state, "new": "running"}}
    if not wanted and state is not None:
        return {"renewal of certificates": {"old": state, "new": None}}
    return {}


def apply(layout: Layout, supervisor: Supervisor, wanted: bool) -> None:
    """Start the renewer if it is *wanted*; else remove it."""
    there = NAME in supervisor.observe([NAME])
    if wanted:
        supervisor.define([service(layout)])
        raise_any(supervisor.start([NAME]))
    elif there:
        raise_any(supervisor.remove([NAME]))
