"""Trust in a fleet's hosts: which hosts the master distrusts, and which links are cut because of that. Pure.

The slices in force have all links, and distrust doesn't change them. Whenever a minion gets its pillar, the links to
and from distrusted hosts are left out. So a cut needs no compilation, works whatever state the declaration is in, and
ends with the distrust. The facts that a cut needs are kept beside each slice, under ``trust`` (:func:`noted`).

There are two kinds of distrust. *Judged*: the master looked at evidence and refused it, or found too low a level, or an
operator revoked the host's certificate. *Expired*: there is no valid result, and the host doesn't answer. If the master
can't reach a host for a moment, neither kind applies.
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
"""States (:mod:`netspace.attestation.fleet.host_state`) that follow from evidence or from an operator's decision."""
MAX_REASON = 1000


class Distrust(msgspec.Struct, frozen=True):
    """Distrust of one host.

    :param kind: ``judged`` or ``expired``.
    :param state: the host's attestation state when the distrust began.
    :param code: the code of the verifier's refusal; empty if there is none.
    :param since: seconds since 1970.
    """

    kind: Kind
    state: str
    code: str
    reason: str
    since: float


class Level(msgspec.Struct, frozen=True):
    """The level of a host by the verifier's last result.

    :param level: 0 to 5.
    :param until: the end of the result's validity, seconds since 1970.
    """

    level: int
    until: float


class Book(msgspec.Struct, frozen=True):
    """The master's record of trust in a fleet.

    :param hosts: the distrusted hosts, by minion.
    :param expiring: the hosts whose result has expired, by minion, with the time when that was seen. They are asked
        again until they count as distrusted.
    :param looked: when the master last checked all hosts while a result had expired.
    :param late: the number of such checks in a row that came more than :data:`GRACE` seconds after the previous check.
    :param waiting: the minions that haven't confirmed a change yet: by minion, the hosts whose trust changed, each with
        the number of the change.
    :param serial: the number of the last change.
    :param levels: the levels of hosts from which a link with ``attested`` leads to another host, by minion.
    """

    hosts: dict[str, Distrust] = msgspec.field(default_factory=dict)
    expiring: dict[str, float] = msgspec.field(default_factory=dict)
    looked: float = 0.0
    late: int = 0
    waiting: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    serial: int = 0
    version: Literal[1] = 1
    levels: dict[str, Level] = msgspec.field(default_factory=dict)


class HostTrust(NamedTuple):
    """The state of a host by the master's own result.

    :param state: ``trusted``, or another state of an attested host.
    :param code: the code of a refusal; empty if there is none.
    :param level: 0 to 5; 0 without a valid result.
    :param until: the end of the result's validity, seconds since 1970.
    """

    state: str
    code: str
    reason: str
    level: int = 0
    until: float = 0.0


def verified(fleet: Fleet, host: str) -> bool:
    """Return whether the master judges a host (``attestation: {verifier: master}``).

    A host that the master doesn't judge is never distrusted.
    """
    given = {**fleet.defaults.attestation, **fleet.hosts[host].spec.attestation}
    return given.get("verifier") == "master"


def noted(fleet: Fleet, host: str, links: Iterable[tuple[LinkEntry, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the facts that a cut of this host's links needs; they are kept beside its slice, under ``trust``.

    The result is empty if the master judges no host at the ends of the links. Otherwise, it has three keys:

    - ``judged``: those of this host and its peers that the master judges;
    - ``minions``: the minions of all peers;
    - ``kept``: for each judged host and kind of distrust, the links that stay although the host is distrusted.

    :param links: the links of the slice, each with its entry in the declaration.
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
    """Return the other host of a link in a slice; empty if the link is within one host."""
    return str(link["from"]).partition("@")[2] or str(link["to"]).partition("@")[2]


def named(link: Mapping[str, Any]) -> str:
    """Return the name of a link in a slice: ``<from>.<to>``."""
    return f"{link['from']}.{link['to']}"


def judged_host(pillar: Mapping[str, Any]) -> str | None:
    """Return the name of the host whose slice this is, if the master judges it; else None."""
    host = str(pillar["netspace"]["broker"]["host"])
    return host if host in pillar.get("trust", {}).get("judged", ()) else None


def cut(pillar: Mapping[str, Any], minion: str, distrusted: Mapping[str, Distrust]) -> dict[str, str]:
    """Return the links that distrust removes from a slice, by name, each with the host at the other end.

    :param pillar: the slice under ``netspace``, and the result of :func:`noted` under ``trust``.
    :param minion: the minion of the slice's host.
    :param distrusted: the distrusted hosts, by minion.
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


def keeps(pillar: Mapping[str, Any], minion: str, distrusted: Mapping[str, Distrust]) -> bool:
    """Return whether a slice still has a link to or from another host after the cut. Parameters as for :func:`cut`."""
    gone = cut(pillar, minion, distrusted)
    return any(far(link) and named(link) not in gone for link in pillar["netspace"].get("links", ()))


def senders(pillar: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the hosts from which links with ``attested`` lead to the slice's host, with the levels that they demand.

    :param pillar: as for :func:`cut`.
    """
    found: dict[str, list[str]] = {}
    for link in pillar["netspace"].get("links", ()):
        other = str(link["from"]).partition("@")[2]
        if other and link.get("attested"):
            found.setdefault(other, []).append(str(link["attested"]))
    return found


def _told(pillar: Mapping[str, Any], levels: Mapping[str, Level]) -> dict[str, Any]:
    """Return a minion's slice with the trust levels of other hosts that its links demand (``attested``)."""
    section: dict[str, Any] = pillar["netspace"]
    minions = pillar.get("trust", {}).get("minions", {})
    told = {
        host: {"level": f"L{levels[minion].level}", "until": levels[minion].until}
        for host in sorted(senders(pillar))
        if (minion := minions.get(host)) in levels
    }
    return {**section, "attestation": {**section.get("attestation", {}), "appraised": told}} if told else section


def served(
    pillar: Mapping[str, Any], minion: str, distrusted: Mapping[str, Distrust], levels: Mapping[str, Level]
) -> dict[str, Any]:
    """Return the pillar that a minion gets: its slice without the links that are cut, and without ``trust``.

    :param levels: the levels of hosts, by minion, for links with ``attested``.
    """
    section = _told(pillar, levels)
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
    senders: Collection[str] = (),
) -> Book:
    """Return the new book after a check of hosts. Hosts that weren't checked keep their entries.

    :param before: the book until now.
    :param judged: the minions of all hosts that the master judges.
    :param states: the states of the checked hosts, by minion.
    :param whole: whether all judged hosts are checked.
    :param asked: whether hosts whose result has expired were asked again just now.
    :param linked: minions that have no slice, though other hosts still have links to them. A distrusted minion among
        them stays distrusted.
    :param lost: whether the old book is lost. Since any host may have been cut in it, each host that isn't trusted is
        cut at once.
    :param senders: minions whose level another host needs to know (``attested``).
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
            # After a downtime of the master, its minions may need some time to connect again. So the first late check
            # cuts no host. A second late check in a row does, so that a silent host doesn't keep its links for ever.
            hosts[minion] = Distrust("expired", state.state, state.code, state.reason[:MAX_REASON], now)
        elif old is None:
            expiring[minion] = since
    looked = now if whole and expiring else before.looked
    levels = _levels(before, hosts, known & set(senders), states)
    return msgspec.structs.replace(before, hosts=hosts, expiring=expiring, looked=looked, late=late, levels=levels)


def _levels(
    before: Book, distrusted: Mapping[str, Distrust], senders: Collection[str], states: Mapping[str, HostTrust]
) -> dict[str, Level]:
    """Return the levels of *senders* after a check.

    A host whose result has expired keeps its level until it counts as distrusted. Otherwise a downtime of the master
    would end links. The receivers' hosts see that the result has expired.
    """
    found = {}
    for minion in sorted(senders):
        state, old = states.get(minion), before.levels.get(minion)
        distrust = distrusted.get(minion)
        if distrust is not None and distrust.kind == "expired":
            found[minion] = Level(0, 0.0)
        elif state is not None and (state.state == TRUSTED or state.state in JUDGED):
            found[minion] = Level(state.level, state.until)
        elif old is not None:
            found[minion] = old
    return found


def relevelled(before: Book, after: Book) -> list[str]:
    """Return the minions whose level changed."""
    levels = [{minion: one.level for minion, one in book.levels.items()} for book in (before, after)]
    return sorted(minion for minion in {*levels[0], *levels[1]} if levels[0].get(minion, 0) != levels[1].get(minion, 0))


def changed(before: Mapping[str, Distrust], after: Mapping[str, Distrust]) -> list[str]:
    """Return the minions whose distrust began, ended or changed its kind."""
    kinds = [{minion: one.kind for minion, one in book.items()} for book in (before, after)]
    return sorted(minion for minion in {*before, *after} if kinds[0].get(minion) != kinds[1].get(minion))


def to_wait(book: Book, wanted: Mapping[str, Iterable[str]]) -> Book:
    """Return the book with more minions that are to be informed.

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
    """Return the book; in ``waiting``, it keeps only minions that are still in the fleet."""
    known = set(members)
    return msgspec.structs.replace(book, waiting={one: hosts for one, hosts in book.waiting.items() if one in known})


def confirmed(book: Book, told: Mapping[str, Mapping[str, int]]) -> Book:
    """Return the book without the changes that minions have confirmed. A change that came later stays.

    :param told: for each minion, the hosts and the numbers of the changes that it confirmed.
    """
    waiting = {}
    for minion, hosts in book.waiting.items():
        left = {host: serial for host, serial in hosts.items() if told.get(minion, {}).get(host) != serial}
        if left:
            waiting[minion] = left
    return msgspec.structs.replace(book, waiting=waiting)
