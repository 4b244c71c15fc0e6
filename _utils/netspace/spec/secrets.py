"""Secrets that a declaration names for an environment: limits on their names, sources and sizes. Pure.

A declaration has no secret itself. It says where the secret is (``sdb://...``), or has the secret's ciphertext, which
only the declared host can open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from netspace.patterns import pattern
from netspace.spec.types import Environment, Secret
from netspace.spec.values import NAME, NAME_RULE

MOST = 32
"""The most secrets of an environment."""
SIZE = 16 * 1024
"""The most bytes of a secret."""
SEALED = 48 * 1024
"""The most characters of a secret's ciphertext."""
SCHEME = "sdb://"
_SOURCE = pattern(r"sdb://[A-Za-z0-9_.-]{1,64}/[!-~]{1,512}")
_SEALED = pattern(r"\{[ -~]*\}")


def of(spec: Environment) -> dict[str, Secret]:
    """Return the secrets of an environment, by name. A text in place of a mapping is a secret's source."""
    return {name: given if isinstance(given, Secret) else Secret(source=given) for name, given in spec.secrets.items()}


def named(secrets: Mapping[str, Secret]) -> dict[str, str | Secret]:
    """Return secrets without ciphertext, for a record of what was applied."""
    return {name: msgspec.structs.replace(one, sealed=None, unread=False) for name, one in sorted(secrets.items())}


def problems(spec: Environment) -> Iterator[tuple[str, str]]:
    """Yield the problems of an environment's secrets: (key, message)."""
    if not spec.secrets:
        return
    if spec.kernel is not None:
        yield "secrets", "a kernel has no files in memory; leave them out"
    if len(spec.secrets) > MOST:
        yield "secrets", f"{len(spec.secrets)} secrets; at most {MOST} are accepted"
    for name, one in of(spec).items():
        where = f"secrets:{name:.60}"
        if not NAME.fullmatch(name):
            yield where, f"{name!r:.60} can't be a secret's name: use {NAME_RULE}"
        if one.source is not None and one.sealed is not None:
            yield where, "has a source and a ciphertext; give one of them"
        if one.source is not None and not _SOURCE.fullmatch(one.source):
            # The text may be a secret that somebody wrote in place of its source.
            yield where, "its source is not of the form sdb://PROFILE/KEY; put the secret itself into such a store"
        if one.sealed is not None and not (len(one.sealed) <= SEALED and _SEALED.fullmatch(one.sealed)):
            yield f"{where}:sealed", "its ciphertext is not one that the fleet's master made"
