"""Terms that match minions by their ids: globs, and Salt's ``E@``, ``L@`` and ``N@``. Pure.

Salt has authenticated a minion's id, but a host chooses its own grains, and so does an intruder on it. So no term here
matches grains, pillar or addresses.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.spec import regex_work


def matches(minion: str, term: str) -> bool:
    """Return whether a term matches a minion's id.

    :param term: a glob, or a term with ``E@`` or ``L@``, as :func:`expand` returns it.
    """
    kind, at, rest = term[:1], term[1:2], term[2:]
    if at != "@":
        return fnmatch.fnmatchcase(minion, term)
    return minion in rest.split(",") if kind == "L" else re.match(rest, minion) is not None


def expand(one: str, at: str, nodegroups: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Return *one* as a list of terms: the term itself, or the terms of the nodegroup that it names.

    :param at: the term's path, for messages.
    :param depth: the number of nodegroups around the term; nodegroups nested too deep are refused.
    :raises NetspaceError: the term matches by grains, pillar or addresses, which a host can choose; or it is malformed.
    """
    if one[1:2] != "@":
        return [one]
    kind, rest = one[0], one[2:]
    if kind == "N":
        found = nodegroups.get(rest)
        words = found.split() if isinstance(found, str) else found
        if not isinstance(words, list) or not words or depth > 8 or any(not isinstance(word, str) for word in words):
            raise NetspaceError(f"{at}: {one!r:.80}: expected a nodegroup of the master that does not contain itself")
        joined = [word for word in words if word != "or"]
        if any(word in ("and", "not", "(", ")") for word in joined):
            raise NetspaceError(f"{at}: {one!r:.80}: the nodegroup may only join ids by 'or'")
        return [term for word in joined for term in expand(word, at, nodegroups, depth + 1)]
    if kind not in ("E", "L"):
        raise NetspaceError(
            f"{at}: {one!r:.80}: hosts can choose their grains and pillar; match by the minion's id (glob, E@, L@, N@)"
        )
    if kind == "E" and (reason := regex_work.refused(rest)):
        raise NetspaceError(f"{at}: {one!r:.80}: {reason}")
    return [one]
