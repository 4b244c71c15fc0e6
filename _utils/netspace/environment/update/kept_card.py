"""Card of an environment that stays at its present version, because an update was not made or was taken back. Pure.

The declaration gives a card its values and the verbs of its host. A program of the version that stays may not
understand the values and verbs of the other version. So its card has the values and verbs of its own version. The rest
of a card, such as the peers, follows the links, which stay updated.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from netspace import files
from netspace.spec import peer
from netspace.spec.types import Environment

CARD = "environment.json"


def of(handed: Mapping[str, bytes], spec: Environment) -> dict[str, bytes]:
    """Return the files to hand out, with the values and verbs of *spec* in the card.

    A unikernel has a disk instead of a card: it keeps the disk that it was given last.

    :param handed: the files for a later version.
    :param spec: the recorded declaration of the version that stays.
    """
    if CARD not in handed:
        return dict(handed)
    later = msgspec.json.decode(handed[CARD])
    card = {key: value for key, value in later.items() if key not in ("values", "audit")}
    card |= {key: value for key, value in (("values", spec.values), ("audit", spec.audit)) if value}
    if "peers" in later:
        card["peers"] = [_peer(about, spec) for about in later["peers"]]
    return {**handed, CARD: files.encode(card)} if card != later else dict(handed)


def _peer(about: Mapping[str, object], spec: Environment) -> dict[str, object]:
    """Return an entry of the card; that of the host has the verbs of *spec*."""
    if about["to"] != peer.NAME:
        return dict(about)
    kept = {key: value for key, value in about.items() if key != "verbs"}
    return {**kept, "verbs": list(spec.host)} if spec.host else kept
