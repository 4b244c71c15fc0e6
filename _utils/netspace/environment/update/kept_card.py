"""Card of an environment whose update was not made or was taken back: the version that stays gets its own values. Pure.

The declaration gives a card its values and the verbs of its host; a program of another version may not understand them.
The rest of a card, such as the peers, follows the links, which an update doesn't take back.
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
    found = dict(handed)
    if CARD not in found:
        return found
    card = msgspec.json.decode(found[CARD])
    for key, value in (("values", spec.values), ("audit", spec.audit)):
        card.pop(key, None)
        if value:
            card[key] = value
    for about in card.get("peers", ()):
        if about["to"] == peer.NAME:
            about.pop("verbs", None)
            if spec.host:
                about["verbs"] = list(spec.host)
    found[CARD] = files.encode(card)
    return found
