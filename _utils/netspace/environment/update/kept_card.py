"""Card (``environment.json``) of an environment that keeps its version, though an update was declared. Pure.

The update was not made, or was taken back. The declaration gives a card the environment's values, the requests (verbs)
that the environment may send to its host, and ``audit``. In the card for the other version, a program of the kept
version may not understand these parts. So they are taken from the kept version's declaration. The other parts, such as
the list of peers, follow the links, which are updated in any case.
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
