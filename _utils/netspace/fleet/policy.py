"""Policy of rollouts: the number of hosts that change at once, and that may fail. Pure."""

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
    """The pace of a rollout, as ``rollout`` in a fleet's declaration.

    :param canary: the hosts that change first: their number, or their names. If one of them fails, the rollout stops.
    :param step: the most hosts that change at once: a number, or a percentage of the plan's hosts.
    :param max_fail: the most hosts that may be bad at any time: a number, or a percentage of the plan's hosts. As no
        host is known to be good before it was looked at, no more hosts than this change at once. If this many have
        failed, the rollout stops.
    :param settle: seconds between the change of hosts and the first look at them.
    :param deadline: seconds from the first look on in which a host must become good; it is looked at again and again.
    :param gate: what must be right with a host that has changed.
    """

    canary: int | tuple[str, ...] = 1
    step: int | str = "10%"
    max_fail: int | str = 1
    settle: float = 30.0
    deadline: float = 60.0
    gate: tuple[Gate, ...] = ("health", "trust")


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A policy in numbers, for the hosts of one plan.

    :param step: the most hosts that change at once.
    :param max_fail: the most hosts that may be bad at any time.
    """

    step: int
    max_fail: int
    settle: float
    gate: tuple[Gate, ...]
    deadline: float = 0.0


def wrong(policy: Policy, known: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Return the problems of a policy: the key, and the reason.

    :param known: the hosts that may be named; None: any.
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
    """Return a declared policy with the arguments that an operator gave for one rollout, as it would be declared.

    A command line knows only texts and numbers: a text of names is a list of hosts, and a text of gates a list of them.

    :param arguments: by key; None: as declared.
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
    """Return a policy in numbers, for a plan with so many hosts."""
    max_fail = _number(policy.max_fail, hosts)
    step = min(_number(policy.step, hosts), max_fail)
    return Pace(step=step, max_fail=max_fail, settle=policy.settle, gate=policy.gate, deadline=policy.deadline)


def _number(value: int | str, hosts: int) -> int:
    return value if isinstance(value, int) else max(1, hosts * int(value.rstrip("%")) // 100)
