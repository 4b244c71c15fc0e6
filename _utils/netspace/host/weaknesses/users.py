"""User namespaces that any user of the host can make (user_namespaces(7)). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from netspace.host.weaknesses.readings import Reading, path
from netspace.host.weaknesses.row import Outcome, Row, number, refused, row, said, setting, unseen

# Switches of Debian's and of Ubuntu's kernels, with the value by which only root can make user namespaces.
_SWITCHES = {"kernel.unprivileged_userns_clone": 0, "kernel.apparmor_restrict_unprivileged_userns": 1}
_MOST = "user.max_user_namespaces"
SYSCTLS = (*_SWITCHES, _MOST)
CALLS = ("unshare", "setns")


def namespaces(known: Mapping[str, Reading]) -> Row:
    """Return the row on user namespaces: whether users of the host without privilege can make them."""
    switches = {name: value for name in _SWITCHES if (value := number(known[name])) is not None}
    most = known[_MOST]
    outcome: Outcome = "unknown"
    if any(_SWITCHES[name] == value for name, value in switches.items()) or number(most) == 0:
        outcome = "good"
    elif switches or number(most) is not None:
        outcome = "weak"
    remedy = " or ".join(setting(name, _SWITCHES[name]) for name in switches) or (
        "this kernel has no switch that allows them only to root; let only users log in whom you trust"
    )
    return row(
        "user namespaces",
        outcome,
        "; ".join((*(f"{name}: {value}" for name, value in switches.items()), f"{_MOST}: {said(most)}")),
        expected=" or ".join(f"{name} {value}" for name, value in _SWITCHES.items()),
        matters="local users",
        why="Any user can make a user namespace and has all capabilities in it, which opens much more of the kernel. "
        + refused(CALLS),
        remedy=f"{remedy} ({_MOST} 0 is no remedy: environments need user namespaces)",
        unseen=unseen(path(_MOST)),
    )
