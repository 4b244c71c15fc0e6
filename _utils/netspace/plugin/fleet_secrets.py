"""Secrets of a minion's pillar, by the functions of Salt that the plugin passes. Salt isn't imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from netspace.errors import NetspaceError, StateError
from netspace.fleet.published import Register

if TYPE_CHECKING:
    from netspace.fleet.secrets import Filled


def wanted(pillar: Mapping[str, Any]) -> bool:
    """Return whether a minion's pillar names any secret."""
    environments = pillar.get("netspace", {}).get("environments", {})
    return any(isinstance(spec, Mapping) and spec.get("secrets") for spec in environments.values())


def filled(
    pillar: Mapping[str, Any],
    minion: str,
    register: Register,
    standing: Callable[[str], Mapping[str, Any]],
    read: Callable[[str], object],
) -> Filled:
    """Return the section ``netspace`` of a minion's pillar with ciphertexts in place of the secrets' sources.

    :param standing: returns the runner's answer about a minion (``netspace_attestation.standing``).
    :param read: returns the secret at a source.
    """
    from netspace.fleet import secrets

    try:
        facts = register.read(minion)
    except StateError:
        facts = None
    found = standing(minion)
    level = found.get("level")
    if level not in ("L0", "L1", "L2", "L3", "L4", "L5"):
        raise NetspaceError(f"netspace_attestation.standing: {str(found.get('reason', found))!r:.200}")
    known = secrets.Standing(int(level[1:]), frozenset(map(str, found["keys"])))
    return secrets.filled(pillar["netspace"], minion, facts.secret_key if facts else "", known, read)
