"""Tables of netspace
==================

Shows the returns of netspace's functions as tables of at most 80 columns. Rows that need attention come first.
netspace's functions on a minion select this output themselves; ``--out=json`` and all other outputs of Salt work as
usual. Runners can't select an output, so pass ``--out=netspace`` for them:

.. code-block:: bash

    salt '*' netspace.overview
    salt-run --out=netspace netspace_attestation.status

Colours appear on a terminal only, and ``--no-color`` turns them off. A return that has no table, such as that of
``netspace_environment.inspect``, is shown by Salt's ``nested`` output, with wide lines broken, and with dates instead
of seconds since the epoch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

import salt.utils.color  # noqa: E402

from netspace.plugin import dates, tables, views  # noqa: E402
from netspace.plugin.tables import Tone, text  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace"

_COLOURS: dict[Tone, str] = {
    "bad": "LIGHT_RED",
    "warn": "LIGHT_YELLOW",
    "good": "LIGHT_GREEN",
    "dim": "DARK_GRAY",
    "head": "LIGHT_CYAN",
}


def __virtual__() -> str:
    return __virtualname__


def output(ret: Any, **kwargs: Any) -> str:
    """Return the lines for a terminal.

    ret
        The return of an execution function, by minion id; or the return of a runner.
    """
    theme = __opts__.get("color_theme")
    known = salt.utils.color.get_colors(__opts__.get("color"), theme)

    def paint(part: str, tone: Tone) -> str:
        colour = str(known[_COLOURS[tone]]) if tone and part else ""
        return f"{colour}{part}{known['ENDC']}" if colour else part

    screen = views.Screen(time.time(), paint)
    if _is_runner() and (whole := _lines(ret, screen)) is not None:
        return "\n".join(whole)
    if not isinstance(ret, dict):
        return _nested(ret, kwargs)
    shown = []
    for minion, data in ret.items():
        lines = _lines(data, screen)
        if lines is None:
            shown.append(_nested({minion: data}, kwargs).rstrip("\n"))
        else:
            shown.append("\n".join([paint(f"{text(minion)}:", "head"), *lines]))
    return "\n".join(shown)


def _is_runner() -> bool:
    """Return whether the return comes from a runner of netspace.

    Attestation results are shown as the verifier's own only if a runner returned them. A minion could return the same
    form, with false results.
    """
    return __opts__.get("__cli") == "salt-run" and str(__opts__.get("fun", "")).startswith("netspace")


def _lines(data: Any, screen: views.Screen) -> list[str] | None:
    """Return the lines of a return value; None if its form is unknown, or if a value in it is not allowed there."""
    try:
        return views.render(data, screen)
    except views.MALFORMED:
        return None


def _nested(data: Any, options: dict[str, Any]) -> str:
    """Return the lines of Salt's own output, with dates, broken at the screen's width; if it fails, a sentence."""
    try:
        return tables.narrow(str(__salt__["nested"](dates.dated(data, time.time()), **options)))
    except (*views.MALFORMED, RecursionError):
        return "this return can't be shown here; try --out=json"
