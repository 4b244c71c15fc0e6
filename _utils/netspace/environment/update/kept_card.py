"""Card (``environment.json``) of an environment that keeps its old version, although an update is declared. Pure.

The update was not made, or was taken back. Some parts of a card come from the environment's declaration: its values,
the requests (verbs) that it may send to its host, and ``audit``. The old program may not understand the new
declaration's values, so these parts are taken from the old declaration. The other parts, such as the list of peers,
follow the links, which are updated in any case.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from netspace import files
from netspace.spec import peer
from netspace.spec.types import Environment

CARD = "environment.json"


def of(handed: Mapping[str, bytes], spec: Environment) -> dict[str, bytes]:
    """Return *handed* with the values, host verbs and ``audit`` of the kept version in the card.

    A unikernel gets a disk instead of a card. Its files are returned unchanged.

    :param handed: the files to hand out that were made for the other version.
    :param spec: the recorded declaration of the kept version.
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
    """Return a peer's entry for the card. In the host's own entry, the verbs are those of *spec*."""
    if about["to"] != peer.NAME:
        return dict(about)
    kept = {key: value for key, value in about.items() if key != "verbs"}
    return {**kept, "verbs": list(spec.host)} if spec.host else kept
