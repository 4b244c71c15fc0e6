"""A minion's pillar, requested from the master again: the pillar in force, or a candidate's. Imports no Salt.

A candidate is a declaration that was planned but not yet applied. The master encrypts each pillar for the minion's own
key. So no other minion and no job cache sees the minion's part of a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.plugin import editions

ASKED = "netspace"
"""The key of the request's extra data."""
MARK = "netspace_candidate"
"""The key of a pillar that tells which candidate it has."""
GENERATION = re.compile(r"[0-9a-f]{16}")


def fetch(
    opts: Mapping[str, Any], grains: Mapping[str, Any], get: Callable[..., Any], generation: str, *, note: bool = False
) -> Any:
    """Return the value of ``netspace`` in this minion's pillar; None if there is none.

    :param get: ``salt.pillar.get_pillar``.
    :param generation: the id of a candidate; empty for the pillar in force.
    :param note: whether to note the pillar's edition, because the pillar is applied now.
    :raises NetspaceError: the master can't render the pillar, has no such candidate, or has an older declaration than
        this host was given before (``editions``).
    """
    extra = {ASKED: {"candidate": generation}} if generation else None
    own = dict(opts)
    asked = get(
        own,
        dict(grains),
        own["id"],
        own.get("saltenv"),
        pillarenv=own.get("pillarenv"),
        extra_minion_data=extra,
    )
    pillar = asked.compile_pillar()
    if not isinstance(pillar, Mapping) or pillar.get("_errors"):
        raise NetspaceError("the master can't render this minion's pillar; the master's log has more")
    if generation and pillar.get(MARK) != generation:
        raise NetspaceError(f"the master gave no planned declaration {generation}; plan again")
    editions.check(opts, pillar, note=note)
    return pillar.get("netspace")


def candidate(extra: object) -> str:
    """Return the id of the candidate that a minion's request for pillar names; empty if it names none.

    :param extra: the request's extra data.
    :raises NetspaceError: the request is malformed.
    """
    asked = extra.get(ASKED) if isinstance(extra, Mapping) else None
    if asked is None:
        return ""
    found = asked.get("candidate") if isinstance(asked, Mapping) else None
    if not isinstance(found, str) or not GENERATION.fullmatch(found):
        raise NetspaceError("the request has no valid id of a planned declaration")
    return found
