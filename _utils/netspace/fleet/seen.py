"""Answers of hosts about themselves (``netspace.glance``), parsed strictly, and judged. Pure.

Each answer is signed with the minion's Salt key, so no other minion can have made it. But a host under an attacker's
control can claim anything about itself. So nothing here decides about trust. If the master's verifier has judged a
host, the host's level is this verdict. The class :class:`Trust` names the source of the level.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from netspace.errors import NetspaceError
from netspace.text import printable

Mark = Literal["well", "odd", "bad", "off", "unknown"]
"""A rating: in order; changing or unusual (odd); something is wrong (bad); off, as declared; nothing is known."""
ORDER: tuple[Mark, ...] = ("bad", "unknown", "odd", "well", "off")
"""Marks from the one that needs attention first."""
Whose = Literal["master", "host", "nobody"]
"""The source of a trust level: the master's verifier, the host itself, or nobody."""

MOST = 20_000
_Text = Annotated[str, msgspec.Meta(max_length=400)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
_ENDED = ("failed", "frozen")


class Row(msgspec.Struct, frozen=True):
    """One environment, as its host reports it. See ``netspace_environment.list``."""

    state: _Text
    health: _Text = ""
    since: float | None = None
    restarts: int = 0
    flapping: bool = False
    updating: bool = False
    supervised: bool = True
    declared_stopped: bool = False
    problem: _Text = ""


class LinkRow(msgspec.Struct, frozen=True):
    """One link, as its host reports it. See ``netspace_link.list``."""

    state: _Text
    why: _Text = ""


class Refusal(msgspec.Struct, frozen=True):
    """A thing that was refused to an audited environment, as its host reports it. See ``netspace.refused``."""

    kind: _Text
    what: _Text
    count: int
    last: float = 0.0


class HostTrust(msgspec.Struct, frozen=True):
    """A host's trust level, as the host reports it."""

    level: Literal["L0", "L1", "L2", "L3", "L4", "L5"]
    verifier: _Text
    reason: _Text
    issued: float | None = None
    expires: float | None = None


class Glance(msgspec.Struct, frozen=True):
    """A host's answer to ``netspace.glance``. Unknown keys (of later versions) are ignored."""

    trust: HostTrust
    environments: Annotated[dict[_Name, Row], msgspec.Meta(max_length=MOST)] = {}
    links: Annotated[dict[_Name, LinkRow], msgspec.Meta(max_length=MOST)] = {}
    refused: Annotated[
        dict[_Name, Annotated[list[Refusal], msgspec.Meta(max_length=100)]], msgspec.Meta(max_length=MOST)
    ] = {}
    problems: Annotated[list[_Text], msgspec.Meta(max_length=1000)] = []


class Seen(NamedTuple):
    """The outcome of asking one host.

    :param glance: the host's answer; None: there is no valid answer.
    :param problem: why there is no valid answer; else empty.
    """

    glance: Glance | None
    problem: str = ""


class Trust(NamedTuple):
    """A host's trust level, and its source.

    :param level: ``L0`` to ``L5``; empty: nobody has reported a level.
    :param mark: the rating of the level, by which a display chooses a colour: ``well``, ``odd``, ``bad`` or
        ``unknown``.
    :param by: the source of the level: the master's verifier, the host, or nobody.
    :param why: the reason for the level.
    :param state: the verifier's state, as in ``netspace_attestation.status``; empty if the host stated the level.
    :param evidence: the time of the evidence, in seconds since 1970.
    :param remedy: steps by which an operator can raise the level.
    """

    level: str
    mark: Mark
    by: Whose
    why: str
    state: str = ""
    evidence: float | None = None
    remedy: str = ""


class Standing(NamedTuple):
    """The state of one replica of an environment, with its rating.

    :param mark: the rating for a display: ``well``, ``odd`` (changing or unusual), ``bad``, ``off`` or ``unknown``.
    :param text: why it isn't well; empty if it is.
    """

    mark: Mark
    state: str
    health: str = ""
    since: float | None = None
    restarts: int = 0
    text: str = ""


def answers(minions: Collection[str], given: Mapping[str, Any], seconds: float) -> dict[str, Seen]:
    """Return the outcome for each minion that was asked.

    :param given: the answers by minion; an exception for a minion that failed.
    :param seconds: the time limit, for the text about a minion that did not answer.
    """
    found = {}
    for minion in minions:
        said = given.get(minion)
        if isinstance(said, NetspaceError):
            found[minion] = Seen(None, printable(str(said)))
        elif minion not in given:
            found[minion] = Seen(None, f"no answer within {seconds:g} s")
        else:
            found[minion] = _parsed(said)
    return found


def _parsed(said: object) -> Seen:
    try:
        return Seen(msgspec.convert(said, Glance))
    except msgspec.ValidationError as err:
        return Seen(None, f"its answer can't be understood: {printable(str(err))[:200]}; synchronise the minion")


def standing(name: str, host: str, seen: Seen, *, off: bool = False) -> Standing:
    """Return the state of an environment on a host where it should run.

    :param off: whether the environment is declared ``state: stopped``.
    """
    if seen.glance is None:
        return Standing("unknown", "unknown", text=f"{host}: {seen.problem}")
    row = seen.glance.environments.get(name)
    if row is None:
        return Standing(
            "off" if off else "bad", "absent", text="" if off else f"not applied: salt {host} state.apply netspace"
        )
    return of_row(row)


def of_row(row: Row) -> Standing:
    """Return the state and rating of an environment from its host's report."""
    told = row.problem
    if row.declared_stopped and row.state == "stopped":
        return Standing("off", "stopped", "", None, row.restarts, told)
    state = "flapping" if row.flapping else row.state
    if row.state in _ENDED or row.health == "unhealthy" or row.flapping or row.problem:
        mark: Mark = "bad"
        told = told or f"it is {row.health if row.health == 'unhealthy' else state}"
    elif not row.supervised:
        mark, told = "odd", "the supervisor doesn't run, so nothing starts it again"
    elif row.updating:
        mark, told = "odd", "an update runs"
    elif row.state != "running" or row.health not in ("", "healthy"):
        mark, told = "odd", f"it is {row.state}{f', {row.health}' if row.health else ''}"
    else:
        mark = "well"
    return Standing(mark, state, row.health, row.since if row.state != "stopped" else None, row.restarts, told)


_MARKS: Mapping[str, Mark] = {"trusted": "well", "enrolled": "odd", "degraded": "odd"}


def trust(verdict: Mapping[str, Any] | None, seen: Seen, now: float) -> Trust:
    """Return a host's trust: by the master's verifier, or else by the host's own report.

    :param verdict: the verifier's verdict, as ``netspace_attestation.status`` returns it; None: there is none.
    :param now: seconds since 1970.
    """
    if verdict is not None and verdict.get("state") not in (None, "unknown"):
        state = str(verdict["state"])
        return Trust(
            str(verdict["level"]),
            _MARKS.get(state, "bad"),
            "master",
            str(verdict["reason"]),
            state,
            verdict.get("evidence"),
            str(verdict.get("remedy") or ""),
        )
    if seen.glance is None:
        return Trust("", "unknown", "nobody", "the master's verifier has no result of it, and it did not answer")
    own = seen.glance.trust
    if own.issued is None:
        return Trust(own.level, "off", "host", own.reason)
    ended = own.expires is not None and own.expires < now
    return Trust(own.level, "odd" if ended or own.level == "L0" else "well", "host", own.reason, "", own.issued)
