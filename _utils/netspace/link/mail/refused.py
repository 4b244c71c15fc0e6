"""Reader of the refusals of an environment's messages, as the broker stores them. Changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access
from netspace.link.broker.refusals import Refusal
from netspace.link.mail import dead_letters
from netspace.link.record import read
from netspace.spec.types import LocalBroker

_LOOKED_AT = 100
"""Dead letters that are looked at, from the oldest."""


class Refused(NamedTuple):
    """The refusals of an environment's messages.

    :param cut_off: closes of the environment's connections by the broker's guard: ``why`` and ``at`` of the last one
        (in seconds since the epoch), and ``times``, their number; empty if there was none.
    :param dead: the numbers of the environment's dead letters by link and reason, among the first hundred dead letters.
    :param error: why the broker couldn't be asked; empty if it answered.
    """

    cut_off: dict[str, Any]
    dead: dict[str, dict[str, int]]
    error: str = ""


def refused(layout: Layout, environment: str) -> Refused:
    """Return the refusals of messages to and from *environment*."""
    record = read(layout)
    mine = [name for name, link in record.links.items() if environment in (link.source, link.target)]
    if record.broker is None or not mine:
        return Refused({}, {})
    try:
        cut = _cut_off(layout, record.broker, environment) if isinstance(record.broker, LocalBroker) else {}
        counted: dict[str, Counter[str]] = {}
        for letter in dead_letters.Letters(layout).count(_LOOKED_AT)["letters"]:
            if letter["link"] in mine:
                counted.setdefault(letter["link"], Counter())[str(letter["reason"])] += 1
    except NetspaceError as err:
        return Refused({}, {}, str(err))
    return Refused(cut, {name: dict(found) for name, found in sorted(counted.items())})


class InVain(NamedTuple):
    """Requests of an environment that the broker refused, or the reason why they aren't known.

    :param refusals: the refused requests.
    :param unseen: why nothing is recorded; empty if refusals are recorded.
    """

    refusals: list[Refusal]
    unseen: str = ""


def asked_in_vain(layout: Layout, environment: str) -> InVain:
    """Return the requests of *environment* that the broker refused."""
    record = read(layout)
    if not any(environment in (link.source, link.target) for link in record.links.values()):
        return InVain([], "it has no link, so it can't log in to the broker")
    if not isinstance(record.broker, LocalBroker):
        return InVain([], "the broker isn't netspace's own")
    try:
        with access.management(layout, record.broker) as api:
            return InVain(access.refused_to(layout, record.broker, api, environment))
    except NetspaceError as err:
        return InVain([], f"the broker doesn't answer: {err}")


def _cut_off(layout: Layout, broker: LocalBroker, environment: str) -> dict[str, Any]:
    with access.management(layout, broker) as api:
        about = access.cut_off(layout, broker, api).get(environment)
    return {} if about is None else {key: about[key] for key in ("why", "times", "at")}
