"""Groups of hosts, which the master's configuration declares, and the group of each minion.

The minion's id alone selects its group. A grain is the host's claim about itself, so it must not select the policy that
judges the host.

Pure: reads no configuration and no policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace.errors import NetspaceError
from netspace.spec import minion_terms

DEFAULT = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LEVEL = re.compile(r"L([1-5])")


@dataclass(frozen=True)
class Group:
    """A group of hosts that one policy judges.

    :param match: terms that match minions' ids: patterns (``*``, ``?``, ``[]``), and Salt's ``E@<regular expression>``
        and ``L@<id>,<id>``. No term matches by grains or pillar, because a host can claim any value there.
    :param minimum: the lowest level of a *trusted* host; a host below this level is *degraded*.
    :param deadline: seconds for which a result counts, here and at the host.
    """

    name: str = DEFAULT
    match: tuple[str, ...] = ("*",)
    minimum: int = 2
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    deadline: float = 7200.0


def parse(
    data: Any, nodegroups: Mapping[str, Any] | None = None, deadline: float = Group.deadline
) -> tuple[Group, ...]:
    """Return the groups of the master's configuration, in order.

    A minion belongs to the first group that matches its id.

    The group ``default`` is last and matches every minion. The configuration may name it, too, to change its values.

    :param nodegroups: the master's nodegroups. A term ``N@<name>`` is replaced by the terms of that nodegroup.
    :param deadline: seconds for which a result counts in groups that configure no deadline.
    :raises NetspaceError: for unknown keys and wrong values.
    """
    at = "master configuration: netspace.attestation:groups"
    if not isinstance(data, list):
        raise NetspaceError(f"{at}: expected a list")
    found: dict[str, Group] = {}
    for number, one in enumerate(data):
        group = _group(one, f"{at}:{number}", nodegroups or {}, deadline)
        if group.name in found:
            raise NetspaceError(f"{at}:{number}: the group {group.name} is declared twice")
        found[group.name] = group
    last = found.pop(DEFAULT, Group(deadline=deadline))
    return (*found.values(), last)


def _group(data: Any, at: str, nodegroups: Mapping[str, Any], default: float) -> Group:
    known = tuple(Group.__dataclass_fields__)
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise NetspaceError(f"{at}: expected a mapping with a name")
    for key in data:
        if key not in known:
            raise NetspaceError(f"{at}:{key!s:.40}: unknown; there are {', '.join(known)}")
    name = data["name"]
    if not _NAME.fullmatch(name):
        raise NetspaceError(f"{at}:name: {name!r:.80}: expected a-z, 0-9, _ and -, at most 63")
    match = data.get("match", ["*"] if name == DEFAULT else None)
    if not isinstance(match, list) or not match or any(not isinstance(one, str) or not one for one in match):
        raise NetspaceError(f"{at}:match: expected a list of patterns of minions' ids")
    if name == DEFAULT and match != ["*"]:
        raise NetspaceError(
            f"{at}:match: leave it out; the group {DEFAULT} gets the minions that no other group matches"
        )
    match = [term for one in match for term in minion_terms.expand(one, f"{at}:match", nodegroups)]
    level = _LEVEL.fullmatch(str(data.get("minimum", "L2")))
    if level is None:
        raise NetspaceError(f"{at}:minimum: {data['minimum']!r:.40}: expected L1 to L5")
    pcrs = data.get("pcrs", list(Group.pcrs))
    if not isinstance(pcrs, list) or not pcrs or any(type(one) is not int or not 0 <= one <= 23 for one in pcrs):
        raise NetspaceError(f"{at}:pcrs: expected a list of PCRs, 0 to 23")
    deadline = data.get("deadline", default)
    if type(deadline) not in (int, float) or not 60 <= deadline <= 30 * 86400:
        raise NetspaceError(f"{at}:deadline: {deadline!r:.40}: expected 60 seconds to 30 days")
    return Group(name, tuple(match), int(level[1]), tuple(sorted(set(pcrs))), float(deadline))


def of(groups: Sequence[Group], minion: str) -> Group:
    """Return the group of *minion*: the first that matches its id."""
    return next(one for one in groups if any(minion_terms.matches(minion, term) for term in one.match))
