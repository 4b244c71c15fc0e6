"""Policy of rollouts: how many hosts change at once, how many may fail, and how long to wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from netspace.spec.types import Base

Gate = Literal["health", "trust"]
MAX_WAIT = 24 * 3600.0
_PERCENT = re.compile(r"([1-9][0-9]?|100)%")
_EXPECTED = "expected a number of hosts, or a percentage such as 10%"


class Policy(Base, frozen=True):
    """The policy of a rollout, as in ``rollout`` of a fleet's declaration.

    :param canary: the hosts that change first: their number, or their names. If one of them fails, the rollout stops.
    :param step: the most hosts that change at once: a number, or a percentage of the plan's hosts.
    :param max_fail: the most hosts that may be bad at any time: a number, or a percentage of the plan's hosts. A
        changed host counts as bad until it is found good, so no more hosts than this change at once. If this many have
        failed, the rollout stops.
    :param settle: seconds between the change of hosts and the first check of them.
    :param deadline: seconds from the first check until a host must be good. Until then it is checked repeatedly.
    :param gate: the conditions that a changed host must meet.
    """

    canary: int | tuple[str, ...] = 1
    step: int | str = "10%"
    max_fail: int | str = 1
    settle: float = 30.0
    deadline: float = 60.0
    gate: tuple[Gate, ...] = ("health", "trust")


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A policy whose percentages are turned into numbers, for one plan.

    :param step: the most hosts that change at once.
    :param max_fail: the most hosts that may be bad at any time.
    """

    step: int
    max_fail: int
    settle: float
    gate: tuple[Gate, ...]
    deadline: float = 0.0


def wrong(policy: Policy, known: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Return the problems of a policy, as pairs of key and reason.

    :param known: the names that ``canary`` may contain; None: any.
    """
    problems = []
    for key in ("step", "max_fail"):
        value = getattr(policy, key)
        if isinstance(value, str) and not _PERCENT.fullmatch(value):
            problems.append((key, f"{value!r:.40}: {_EXPECTED}"))
        elif isinstance(value, int) and value < 1:
            least = "without a host that may fail, no host can change" if key == "max_fail" else "the least is 1"
            problems.append((key, f"{value}: {least}"))
    if isinstance(policy.canary, int):
        if policy.canary < 0:
            problems.append(("canary", f"{policy.canary}: expected a number of hosts, or a list of them"))
    elif known is not None and (unknown := sorted(set(policy.canary) - set(known))):
        problems.append(("canary", f"{', '.join(unknown)[:200]}: no host of the fleet; declare it under hosts"))
    for key in ("settle", "deadline"):
        if not 0 <= (value := getattr(policy, key)) <= MAX_WAIT:
            problems.append((key, f"{value:g}: expected 0 to {MAX_WAIT:g} seconds"))
    return problems


def merged(declared: Policy, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a declared policy with the operator's arguments for one rollout, in the form of a declaration.

    An argument from a command line is a text or a number. So a text for ``canary`` or ``gate`` is split into a list of
    names.

    :param arguments: the arguments by key; None: the declared value stays.
    """
    found = msgspec.to_builtins(declared)
    for key, value in arguments.items():
        if value is None:
            continue
        if key in ("canary", "gate") and isinstance(value, str):
            value = [one for one in value.replace(",", " ").split() if one != "none"]
        found[key] = value
    return dict(found)


def pace(policy: Policy, hosts: int) -> Pace:
    """Return a policy whose percentages are converted to numbers of hosts.

    :param hosts: the number of hosts in the plan.
    """
    max_fail = _number(policy.max_fail, hosts)
    step = min(_number(policy.step, hosts), max_fail)
    return Pace(step=step, max_fail=max_fail, settle=policy.settle, gate=policy.gate, deadline=policy.deadline)


def _number(value: int | str, hosts: int) -> int:
    return value if isinstance(value, int) else max(1, hosts * int(value.rstrip("%")) // 100)
