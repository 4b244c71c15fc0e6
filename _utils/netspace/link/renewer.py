"""The service that has certificates replaced before they run out, on a host where nothing is applied for days.

A shell that sleeps (under a megabyte, whatever supervises it) and runs ``python -m netspace renew`` each hour.
What that does is in :mod:`netspace.renew`; an apply does the same, and first.
"""

from __future__ import annotations

from netspace import library
from netspace.errors import raise_any
from netspace.layout import Layout
from netspace.supervision import Service, Status, Supervisor

NAME = "renewer"
PAUSE = 3600

_LOOP = 'while sleep "$0"; do "$@"; done'


def service(layout: Layout) -> Service:
    return Service(
        name=NAME,
        command=("/bin/sh", "-c", _LOOP, str(PAUSE), *library.command(layout, "renew")),
        description=f"Renewal of the certificates of {layout.instance}'s links",
        variables={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        stop_timeout=5.0,
        log=layout.logs / "renewer.log",
    )


def lacking(status: Status | None, wanted: bool) -> dict[str, dict[str, str | None]]:
    """Return the change by which the renewer runs where it is *wanted*, and only there; empty: none is needed."""
    state = None if status is None else status.state
    if wanted and state not in ("running", "starting"):
        return {"renewal of certificates": {"old": state, "new": "running"}}
    if not wanted and state is not None:
        return {"renewal of certificates": {"old": state, "new": None}}
    return {}


def apply(layout: Layout, supervisor: Supervisor, wanted: bool) -> None:
    """Have the renewer run where it is *wanted*; else remove it."""
    there = NAME in supervisor.observe()
    if wanted:
        supervisor.define([service(layout)])
        raise_any(supervisor.start([NAME]))
    elif there:
        raise_any(supervisor.remove([NAME]))
