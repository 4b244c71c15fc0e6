"""``whoami``: the asking environment as its host knows it. This is the host's statement, without a proof.

``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from netspace.host.peer.asker import Asker, Nothing

Arguments = Nothing


class Trust(msgspec.Struct, frozen=True):
    """The host's trust level, as the host itself states it.

    :param level: ``L0`` to ``L5``.
    :param verifier: who judged the host's evidence: ``self``, the name of a master's verifier, or ``none``.
    :param told_by: always ``host``. A host under an attacker's control can state anything.
    """

    level: Literal["L0", "L1", "L2", "L3", "L4", "L5"]
    verifier: str
    told_by: Literal["host"] = "host"


class Answer(msgspec.Struct, frozen=True):
    """The asking environment as its host knows it.

    :param name: the environment's name.
    :param image: digest of its image: ``sha256:`` and 64 hexadecimal digits.
    :param configuration: digest of its runtime's configuration (OCI's ``config.json``), in the same form.
    :param started: when its program was started, in seconds since 1970; null: the host doesn't know.
    :param host: the host's name in links (``broker:host``); null: none is declared.
    :param trust: the host's trust level.
    """

    name: str
    image: str
    configuration: str
    started: float | None
    host: str | None
    trust: Trust


def answer(asker: Asker, _: Nothing) -> Answer:
    """Return the host's facts about the asking environment."""
    own, told = asker.own, asker.told
    return Answer(
        name=asker.name,
        image=own.image,
        configuration=own.configuration,
        started=asker.started(),
        host=told.host,
        trust=Trust(told.level(asker.now), told.trust.verifier),
    )
