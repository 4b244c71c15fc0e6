"""Things refused to an audited environment, and the declaration that would permit them. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.host import called
from netspace.host.parts import Parts
from netspace.spec import suggest
from netspace.spec.suggest import Kind, Refused
from netspace.spec.types import Allow, Cidr, Interface, Link
from netspace.text import hint

if TYPE_CHECKING:
    from netspace.interface.refusals import Refusal
    from netspace.link.broker.refusals import Refusal as Vain

_REST = {
    "rest": "no rule lets this protocol or message pass, or too many peers and ports were refused",
    "forged": "the source isn't the environment's own address",
}
_OFF = "audit isn't true"


class Record(NamedTuple):
    """The refusals of one environment.

    :param refused: the refusals, the oldest first.
    :param unseen: for each kind that isn't recorded, the reason.
    :param interface: the environment's interface as it was applied.
    :param host: the host's own addresses, as the environment sees them.
    :param links: all applied links.
    """

    refused: list[Refused]
    unseen: Mapping[Kind, str]
    interface: Interface | None
    host: frozenset[str]
    links: tuple[Link, ...] = ()


def record(host: Parts, name: str) -> Record:
    """Return the refusals of environment *name*, of all kinds.

    :raises NetspaceError: there is no such environment, or a record can't be read.
    """
    from netspace.interface import refusals
    from netspace.link.mail.refused import InVain, asked_in_vain

    known = host.environments.names() | host.interfaces.names()
    if name not in known:
        raise NetspaceError(f"there is no environment {name}; {hint(name, known)}")
    packets = refusals.refusals(host.layout, name)
    there = host.environments.recorded([name]).get(name)
    audited = there is not None and there.spec.audit
    messages = asked_in_vain(host.layout, name) if audited else InVain([], _OFF)
    calls, uncounted = ([], _OFF) if there is None or not audited else called.refused(host.layout, name, there)
    unseen: dict[Kind, str] = {}
    if uncounted:
        unseen["system calls"] = unseen["files"] = uncounted
    if packets.unseen:
        unseen["packets"] = packets.unseen
    if messages.unseen:
        unseen["messages"] = messages.unseen
    interface, gateways = None, frozenset[str]()
    if packets.record is not None:
        interface, gateways = packets.record.interface, frozenset(packets.record.gateways.values())
    found = [_packets(one) for one in packets.found]
    found += [_message(name, one, host.environments.names()) for one in messages.refusals]
    found += calls
    return Record(sorted(found, key=lambda one: one.first), unseen, interface, gateways, tuple(host.links.recorded()))


def _message(name: str, one: Vain, known: Collection[str]) -> Refused:
    """Return a refusal of the broker, with the link that would permit the message.

    A link can permit the message only if *name* itself tried to send it to a link's exchange.
    """
    from netspace.link.topology.names import environments_of

    told = Refused("messages", one.what, one.times, one.first, one.last)
    ends = environments_of(one.exchange, "link") if one.exchange else None
    if ends is not None and len(ends) == 2 and ends[0] == name and ends[1] in known and ends[1] != name:
        return told._replace(part=Link(source=name, target=ends[1]))
    return told._replace(why="no link permits it")


def _packets(one: Refusal) -> Refused:
    """Return a refusal of packets, with the rule that would let them pass, or why no rule would."""
    what, way = one.what, "to" if one.direction == "out" else "from"
    if one.why != "rule":
        said = f"{one.direction}: {'protocol ' if what.protocol.isdigit() else ''}{what.protocol}"
        return Refused("packets", said, one.times, one.first, one.last, why=_REST[one.why])
    port = "" if what.port is None else f", port {what.port}"
    said = f"{one.direction}: {what.protocol} {way} {what.peer}{port}"
    told = Refused("packets", said, one.times, one.first, one.last)
    if one.neighbour:
        return told._replace(why=f"packets never pass between environments; {one.neighbour} is reached by a link")
    if what.port == 0:
        return told._replace(why="there is no port 0")
    part = Allow(direction=one.direction, cidr=Cidr.parse(what.peer), protocol=what.protocol, port=what.port)  # type: ignore[arg-type]  # "rule" has a protocol that rules have
    return told._replace(part=part)


def refused(host: Parts, name: str) -> dict[str, Any]:
    """Return the refusals of environment *name*, as plain values.

    :raises NetspaceError: see :func:`record`.
    """
    known = record(host, name)
    return {
        "refusals_of": name,
        "not_recorded": dict(known.unseen),
        "rows": [
            {
                "kind": one.kind,
                "what": one.what,
                "count": one.times,
                "first": one.first,
                "last": one.last,
                "permitted_now": one.part is not None and suggest.permitted(one.part, known.interface, known.links),
                "why": one.why,
            }
            for one in known.refused
        ],
    }


def counts(host: Parts, name: str) -> dict[str, int]:
    """Return the number of refusals of environment *name*, by kind, without those that are permitted by now.

    :raises NetspaceError: see :func:`record`.
    """
    known = record(host, name)
    found: dict[str, int] = {}
    for one in known.refused:
        if one.part is None or not suggest.permitted(one.part, known.interface, known.links):
            found[one.kind] = found.get(one.kind, 0) + one.times
    return found


def suggestion(host: Parts, name: str) -> str:
    """Return the lines of a declaration that would permit what was refused to environment *name*.

    :raises NetspaceError: see :func:`record`.
    """
    known = record(host, name)
    return suggest.text(name, known.interface, known.host, known.refused, known.unseen, known.links)
