"""Trust in a fleet's hosts: which hosts the master distrusts, and which links slices lack because of it. Pure.

The slices in force have all links, and distrust changes none of them. The links to and from distrusted hosts are left
out whenever a slice is handed out. So a cut needs no compilation, works whatever state the declaration is in, and ends
with the distrust. The facts that this needs are noted beside each slice, under ``trust``.

Two kinds of distrust are kept apart. *Judged*: the master looked at evidence and refused it, found too low a level, or
an operator revoked the host's certificate. *Expired*: there is no valid result, and the host doesn't answer. A host
that the master can't reach for a moment is neither.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from netspace.fleet.types import Fleet, LinkEntry

Kind = Literal["judged", "expired"]

GRACE = 300.0
"""Seconds for which a host whose result has expired is asked again before it counts as distrusted."""
TRUSTED = "trusted"
JUDGED = frozenset({"failed", "degraded", "revoked"})
"""States (:mod:`netspace.attestation.fleet.host_state`) that follow from evidence, or from an operator's word."""
MAX_REASON = 1000


class Distrust(msgspec.Struct, frozen=True):
    """Distrust of one host.

    :param state: its state by its attestation, when the distrust began.
    :param code: the code of the refusal; empty if there is none.
    :param since: seconds since 1970.
    """

    kind: Kind
    state: str
    code: str
    reason: str
    since: float


class Book(msgspec.Struct, frozen=True):
    """The master's memory of trust in a fleet.

    :param hosts: the distrusted hosts, by minion.
    :param expiring: since when a host's result has expired, by minion: it is asked again until it counts as distrusted.
    :param looked: when the master last looked at all hosts, if a result had expired.
    :param late: how many such looks in a row came more than :data:`GRACE` seconds after the look before.
    :param waiting: the minions that haven't confirmed a change yet: by minion, the hosts whose trust changed, each with
        the number of the change.
    :param serial: the number of the last change.
    """

    hosts: dict[str, Distrust] = msgspec.field(default_factory=dict)
    expiring: dict[str, float] = msgspec.field(default_factory=dict)
    looked: float = 0.0
    late: int = 0
    waiting: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    serial: int = 0
    version: Literal[1] = 1


class HostTrust(NamedTuple):
    """State of a host by the master's own result.

    :param state: ``trusted``, or another state of an attested host.
    """

    state: str
    code: str
    reason: str


def verified(fleet: Fleet, host: str) -> bool:
    """Return whether the master judges a host (``attestation: {verifier: master}``). Others are never distrusted."""
    given = {**fleet.defaults.attestation, **fleet.hosts[host].spec.attestation}
    return given.get("verifier") == "master"


def noted(fleet: Fleet, host: str, links: Iterable[tuple[LinkEntry, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the facts to note beside a host's slice; empty if the master judges no host at the ends of its links.

    The result has ``judged``: the judged hosts among this one and its peers; ``minions``: of all peers; and ``kept``:
    by a judged host and a kind of distrust, the links that stay nevertheless.

    :param links: the links of the slice, each with its declaration.
    """
    minions: dict[str, str] = {}
    kept: dict[str, dict[Kind, list[str]]] = {}
    judged = {host} if verified(fleet, host) else set[str]()
    for entry, link in links:
        other = far(link)
        if not other:
            continue
        minions[other] = fleet.minion(other)
        for end in (host, other):
            if not verified(fleet, end):
                continue
            judged.add(end)
            spec = fleet.hosts[end].spec
            reactions: dict[Kind, str] = {
                "judged": entry.on_distrust or spec.on_distrust or fleet.defaults.on_distrust,
                "expired": entry.on_distrust or spec.on_expiry or fleet.defaults.on_expiry,
            }
            for kind, reaction in reactions.items():
                if reaction == "report":
                    kept.setdefault(end, {}).setdefault(kind, []).append(named(link))
    return {"judged": sorted(judged), "minions": minions, "kept": kept} if judged else {}


def far(link: Mapping[str, Any]) -> str:
    """Return the other host of a link in a slice; empty if both ends are on one host."""
    return str(link["from"]).partition("@")[2] or str(link["to"]).partition("@")[2]


def named(link: Mapping[str, Any]) -> str:
    """Return the name of a link within a slice, as its host calls it."""
    return f"{link['from']}.{link['to']}"


def judged_host(pillar: Mapping[str, Any]) -> str | None:
    """Return the name of a slice's own host if the master judges it."""
    host = str(pillar["netspace"]["broker"]["host"])
    return host if host in pillar.get("trust", {}).get("judged", ()) else None


def cut(pillar: Mapping[str, Any], minion: str, distrusted: Mapping[str, Distrust]) -> dict[str, str]:
    """Return the links that a slice must not have, by name, each with its other host.

    :param pillar: the slice, and what is noted beside it.
    """
    beside = pillar.get("trust")
    if not beside or not distrusted:
        return {}
    own = pillar["netspace"]["broker"]["host"]
    found = {}
    for link in pillar["netspace"].get("links", ()):
        other = far(link)
        for end, its in ((own, minion), (other, beside["minions"].get(other))):
            distrust = distrusted.get(its) if other and end in beside["judged"] else None
            if distrust is not None and named(link) not in beside["kept"].get(end, {}).get(distrust.kind, ()):
                found[named(link)] = other
    return found


def served(pillar: Mapping[str, Any], minion: str, distrusted: Mapping[str, Distrust]) -> dict[str, Any]:
    """Return what a minion gets: its slice without the links that are cut, and without what is noted beside it."""
    section = pillar["netspace"]
    gone = cut(pillar, minion, distrusted)
    if not gone:
        return {"netspace": section}
    links = [link for link in section["links"] if named(link) not in gone]
    broker = dict(section["broker"])
    left = {far(link) for link in links}
    broker["hosts"] = {host: one for host, one in broker.get("hosts", {}).items() if host in left}
    if not broker["hosts"]:
        del broker["hosts"]
    if not any("@" in link["from"] for link in links):
        broker.pop("listen", None)
    found = {**section, "broker": broker, "links": links}
    if not links:
        del found["links"]
    return {"netspace": found}


def decide(
    before: Book,
    judged: Iterable[str],
    states: Mapping[str, HostTrust],
    now: float,
    *,
    whole: bool,
    asked: bool,
    linked: Collection[str] = (),
    lost: bool = False,
) -> Book:
    """Return the book after a look at hosts. Hosts that weren't looked at keep their entries.

    :param judged: the minions of all hosts that the master judges.
    :param states: by minion; absent: it isn't looked at.
    :param whole: whether all judged hosts are looked at.
    :param asked: whether hosts whose result has expired were asked again just now.
    :param linked: minions that have no slice, though others still have links to them. A distrusted one stays
        distrusted.
    :param lost: whether the book before is lost, so that a host may have been cut. One that isn't trusted is, at once.
    """
    known = set(judged)
    hosts = {minion: one for minion, one in before.hosts.items() if minion in known or minion in linked or not whole}
    expiring = {minion: min(at, now) for minion, at in before.expiring.items() if minion in known}
    late = before.late
    if whole and not asked:
        away = bool(before.expiring) and (now - before.looked > GRACE or before.looked > now)
        late = late + 1 if away else 0
    for minion in known & set(states):
        state, old = states[minion], hosts.get(minion)
        since = expiring.pop(minion, now)
        if state.state == TRUSTED:
            hosts.pop(minion, None)
        elif state.state in JUDGED:
            begun = old.since if old is not None and old.kind == "judged" else now
            hosts[minion] = Distrust("judged", state.state, state.code, state.reason[:MAX_REASON], begun)
        elif old is None and (lost or (asked and now - since >= GRACE and late != 1)):
            # After a master was down, its minions may still be about to connect again: so the first late look cuts
            # nobody. If all looks are late, the next one does: silence grants nothing for ever.
            hosts[minion] = Distrust("expired", state.state, state.code, state.reason[:MAX_REASON], now)
        elif old is None:
            expiring[minion] = since
    looked = now if whole and expiring else before.looked
    return msgspec.structs.replace(before, hosts=hosts, expiring=expiring, looked=looked, late=late)


def changed(before: Mapping[str, Distrust], after: Mapping[str, Distrust]) -> list[str]:
    """Return the minions whose trust changed, so that links may have to be cut or restored."""
    kinds = [{minion: one.kind for minion, one in book.items()} for book in (before, after)]
    return sorted(minion for minion in {*before, *after} if kinds[0].get(minion) != kinds[1].get(minion))


def to_wait(book: Book, wanted: Mapping[str, Iterable[str]]) -> Book:
    """Return the book with more minions to tell.

    :param wanted: for each minion, the hosts whose trust changed.
    """
    if not any(wanted.values()):
        return book
    serial = book.serial + 1
    waiting = {minion: dict(hosts) for minion, hosts in book.waiting.items()}
    for minion, names in wanted.items():
        waiting.setdefault(minion, {}).update(dict.fromkeys(names, serial))
    return msgspec.structs.replace(book, waiting=waiting, serial=serial)


def pruned(book: Book, members: Iterable[str]) -> Book:
    """Return the book without the minions to tell that have left the fleet."""
    known = set(members)
    return msgspec.structs.replace(book, waiting={one: hosts for one, hosts in book.waiting.items() if one in known})


def confirmed(book: Book, told: Mapping[str, Mapping[str, int]]) -> Book:
    """Return the book without what minions have confirmed. A change later than the confirmed one stays.

    :param told: for each minion, the hosts and the numbers of the changes that it confirmed.
    """
    waiting = {}
    for minion, hosts in book.waiting.items():
        left = {host: serial for host, serial in hosts.items() if told.get(minion, {}).get(host) != serial}
        if left:
            waiting[minion] = left
    return msgspec.structs.replace(book, waiting=waiting)
