"""Checks of hosts' trust (*looks*): the master cuts the links of distrusted hosts, and informs all minions concerned.

A look uses only the master's own results. An event only hints that a look may be due: a forged event makes the master
look at a host, and has no other effect. Requests that wait at the same time share one look.

A master that doesn't run cuts nothing and restores nothing. After a downtime of the master, results have expired
through no fault of the hosts. So a host whose result has expired is asked again for :data:`trust.GRACE` seconds before
it is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from netspace.errors import NetspaceError, StateError
from netspace.fleet import joining, trust
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.in_force import Stamp
from netspace.fleet.trust import Book, HostTrust
from netspace.fleet.trust_book import TrustBook
from netspace.link.seal.exchange import exchange
from netspace.text import printable

REVISE = "netspace_trust.revise"
SEALS = "netspace_link.exchange_seals"
"""The runner function that an operator calls if the exchange of keys for sealed links failed."""
ATTEST = "netspace_attestation.attest"
"""The runner function that an operator calls if silent hosts could not be asked again."""
MOST_GROUPS = 8
"""The most messages, each about another set of hosts. For more sets, one message tells minions to compare all links."""


_EARLIER = "unexpected keyword argument 'cut'"
"""A part of the answer of a minion whose netspace is older than the argument ``cut``."""


class Master(Protocol):
    """The master's attestation results, and calls to its minions."""

    def states(self, minions: Collection[str]) -> Mapping[str, HostTrust]:
        """Return the states of minions by the master's own results, without asking the minions.

        :raises NetspaceError: the results can't be read.
        """

    def attest(self, minions: Collection[str]) -> None:
        """Attest minions again. A minion without an accepted key is left out; it counts as silent.

        :raises NetspaceError: no minion can be called.
        """

    def ask(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a function on minions; return their answers by minion, with an error for a minion that failed.

        :raises NetspaceError: no minion can be called.
        """

    def ask_at_once(self, function: str, calls: Sequence[tuple[Collection[str], Mapping[str, Any]]]) -> dict[str, Any]:
        """Like :meth:`ask`, with other arguments for other minions; no minion waits for another one's answer.

        :param calls: pairs: minions, and the arguments of the call to them. The messages are sent in this order.
        """

    def tell(self, event: str, data: Mapping[str, Any]) -> None:
        """Report a change of trust to the operator, as an event."""


class Judged:
    """The hosts in force that the master judges. Each slice is read when it is first needed.

    :param hosts: the hosts' names, by minion.
    """

    def __init__(self, declaration: FleetDeclaration, hosts: Mapping[str, str]) -> None:
        self.hosts = hosts
        self._declaration = declaration
        self._pillars: dict[str, Mapping[str, Any]] = {}

    def pillar(self, minion: str) -> Mapping[str, Any]:
        """Return a host's slice under ``netspace``, and the facts from ``trust.noted`` under ``trust``."""
        if minion not in self._pillars:
            found = self._declaration.whole(minion)
            if found is None or "trust" not in found:
                raise StateError(f"{minion}: the declaration in force changed in the meantime; look again")
            self._pillars[minion] = found
        return self._pillars[minion]

    def peers(self, minion: str) -> Mapping[str, str]:
        """Return the minions of a host's peers, by the peers' names."""
        found: Mapping[str, str] = self.pillar(minion)["trust"]["minions"]
        return found


class _Begun:
    """The times at which this process last began to check minions, by trust book and minion."""

    def __init__(self) -> None:
        self._at: dict[tuple[Path, str], float] = {}

    def due(self, book: TrustBook, minions: Iterable[str], asked: float) -> list[str]:
        """Return those of *minions* that this process hasn't begun to check since the time *asked*.

        They count as begun now.
        """
        due = [minion for minion in minions if self._at.get((book.path, minion), float("-inf")) < asked]
        self._at.update(dict.fromkeys(((book.path, minion) for minion in due), time.monotonic()))
        return due


_begun = _Begun()
_known: dict[Path, tuple[tuple[Stamp, ...], dict[str, str], frozenset[str], frozenset[str], dict[str, set[str]]]] = {}
"""Cache of the slices in force, by the path of the book.

Each value has five parts:

- stamps of the files in force;
- the names of the hosts that the master judges, by minion;
- all minions with a slice;
- the minions without a slice to which other hosts still have links;
- for each minion whose host sends by a link with ``attested``: the minions of the receivers' hosts.
"""


def look(declaration: FleetDeclaration, master: Master, names: Sequence[str] = ()) -> dict[str, Any]:
    """Check hosts, cut or restore their links, and inform the minions concerned; return the state as plain values.

    Only a look at all hosts asks hosts with an expired result again, and informs minions again that didn't confirm.

    :param names: names of hosts, or ids of their minions; other names are ignored. Empty: all hosts.
    :raises NetspaceError: nothing is in force, or the results can't be read. In this case nothing is changed.
    """
    asked, began = time.monotonic(), time.time()
    hosts = judged(declaration)
    chosen = {minion for minion, host in hosts.hosts.items() if not names or minion in names or host in names}
    book = declaration.trust
    if names and not chosen:
        return shown(declaration, {}, hosts)
    news, after = _seen(declaration, master, hosts, chosen, whole=not names, asked=asked)
    failed = _told(declaration, master, hosts, news)
    if not names:
        # If the book was lost, hosts were cut as expired before they were asked. So they are asked now, too.
        cut = {minion for minion, one in after.hosts.items() if one.kind == "expired" and one.since >= began}
        silent = sorted({*after.expiring, *cut} & set(hosts.hosts))
        if silent:
            try:
                master.attest(silent)
            except NetspaceError as err:  # no host could be asked, so none is cut for silence
                failed[ATTEST] = printable(str(err)[: trust.MAX_REASON])[: trust.MAX_REASON]
            else:
                news, after = _seen(declaration, master, hosts, chosen, whole=True, asked=None)
                failed |= _told(declaration, master, hosts, news)
        with book.telling() as mine:
            waiting = {minion: names for minion, names in book.read().waiting.items() if minion not in failed}
            if mine:
                failed |= _told(declaration, master, hosts, waiting)
    return shown(declaration, failed, hosts)


def judged(declaration: FleetDeclaration) -> Judged:
    """Return the hosts in force that the master judges.

    The slices are read again only after the files in force have changed. So a forged event costs only a look at the
    files' times.

    :raises NetspaceError: nothing is in force, or the slices are damaged.
    """
    known = _known.get(declaration.trust.path)
    if known is None or known[0] != declaration.stamps():
        now = declaration.stamps(settled=True)
        wholes = declaration.wholes()
        if not wholes:
            raise NetspaceError("no declaration of the fleet is in force yet; see why: salt-run netspace_fleet.check")
        named = {minion: trust.judged_host(pillar) for minion, pillar in wholes.items()}
        found = {minion: host for minion, host in named.items() if host is not None}
        noted = (pillar.get("trust", {}).get("minions", {}) for pillar in wholes.values())
        linked = frozenset(minion for minions in noted for minion in minions.values() if minion not in wholes)
        senders: dict[str, set[str]] = {}
        for receiver, pillar in wholes.items():
            minions = pillar.get("trust", {}).get("minions", {})
            for host in trust.senders(pillar):
                senders.setdefault(minions.get(host, ""), set()).add(receiver)
        known = _known[declaration.trust.path] = now, found, frozenset(wholes), linked, senders
    return Judged(declaration, known[1])


def _seen(
    declaration: FleetDeclaration,
    master: Master,
    hosts: Judged,
    chosen: Collection[str],
    *,
    whole: bool,
    asked: float | None,
) -> tuple[dict[str, dict[str, int]], Book]:
    """Check the *chosen* hosts and write the book; return the minions to inform now, and the book.

    :param whole: whether these are all judged hosts.
    :param asked: when the look was requested, by the monotonic clock; None: expired hosts were asked again just now.
    """
    book = declaration.trust
    with book.looking():
        due, lost = _begun.due(book, chosen, float("inf") if asked is None else asked), False
        try:
            before = book.read()
        except StateError:
            if not whole:
                raise
            before, due, lost = Book(), list(hosts.hosts), True
        states = master.states(due) if due else {}
        linked, senders = _known[book.path][3:]
        after = trust.decide(
            before,
            hosts.hosts,
            states,
            time.time(),
            whole=whole,
            asked=asked is None,
            linked=linked,
            lost=lost,
            senders=senders,
        )
        changes = trust.changed(before.hosts, after.hosts)
        wanted: dict[str, list[str]] = {}
        for minion in changes:
            if minion not in hosts.hosts:
                continue  # the host isn't in the fleet any more, and no slice has links to it
            for peer in concerned(hosts, minion, before, after):
                wanted.setdefault(peer, []).append(hosts.hosts[minion])
        for minion in trust.relevelled(before, after):
            for peer in senders.get(minion, ()):
                names = wanted.setdefault(peer, [])
                names += {hosts.hosts[minion]}.difference(names) if minion in hosts.hosts else ()
        after = trust.to_wait(after, wanted)
        if whole:
            after = trust.pruned(after, _known[book.path][2])
        book.write(after)
    for minion in changes:
        distrust = after.hosts.get(minion)
        data = {
            "host": hosts.hosts.get(minion, minion),
            "minion": minion,
            **({} if distrust is None else msgspec.to_builtins(distrust)),
        }
        master.tell("restored" if distrust is None else "distrusted", data)
    # A minion without a slice needn't be informed.
    told = {minion: names for minion, names in wanted.items() if minion in after.waiting}
    return {minion: {host: after.waiting[minion][host] for host in names} for minion, names in told.items()}, after


def concerned(hosts: Judged, minion: str, before: Book, after: Book) -> set[str]:
    """Return the host's minion, and the minions of peers whose links are cut or restored with its trust."""
    cuts = [
        trust.cut(hosts.pillar(minion), minion, {minion: book.hosts[minion]}) if minion in book.hosts else {}
        for book in (before, after)
    ]
    others = {other for name, other in {**cuts[0], **cuts[1]}.items() if (name in cuts[0]) != (name in cuts[1])}
    return {minion, *(hosts.peers(minion)[other] for other in others)}


def _told(
    declaration: FleetDeclaration,
    master: Master,
    hosts: Judged,
    waiting: Mapping[str, Mapping[str, int]],
) -> dict[str, str]:
    """Let minions revise their links, and record which did; return by minion why others didn't."""
    groups = _groups(hosts.hosts, waiting)
    failed: dict[str, str] = {}
    done: dict[str, Mapping[str, int]] = {}
    gone = _gone(hosts, declaration.trust.read())
    calls = [
        (minions, {"hosts": list(names), "own": own, **({"cut": found} if (found := gone(names)) and not own else {})})
        for (names, own), minions in groups.items()
    ]
    try:
        answers = master.ask_at_once(REVISE, calls) if calls else {}
        # A minion with an earlier netspace doesn't know the argument, and must cut all the same.
        earlier = [
            (
                [one for one in minions if _EARLIER in str(answers.get(one))],
                {"hosts": told["hosts"], "own": told["own"]},
            )
            for minions, told in calls
            if "cut" in told
        ]
        if earlier := [call for call in earlier if call[0]]:
            answers |= master.ask_at_once(REVISE, earlier)
    except NetspaceError as err:
        answers = dict.fromkeys(waiting, str(err))
    for minion in waiting:
        answer = answers.get(minion, "it did not answer")
        if answer == []:
            done[minion] = waiting[minion]
        else:
            failed[minion] = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    if done:
        with declaration.trust.looking():
            declaration.trust.write(trust.confirmed(declaration.trust.read(), done))
        failed |= _exchanged(declaration, master, hosts, {host for names in done.values() for host in names})
    # A peer's answer may be false, and may have control characters for the terminal.
    return {minion: printable(text[: trust.MAX_REASON])[: trust.MAX_REASON] for minion, text in failed.items()}


def _gone(hosts: Judged, book: Book) -> Callable[[Iterable[str]], list[str]]:
    """Return a function that returns, of some hosts (by name), those that lose all links to other hosts by distrust.

    The message to a minion names these hosts, so that the minion ends its links with them at once, before it requests
    its pillar.
    """
    minions = {host: minion for minion, host in hosts.hosts.items()}

    def gone(names: Iterable[str]) -> list[str]:
        return [
            name
            for name in names
            if (minion := minions.get(name)) in book.hosts
            and minion is not None
            and not trust.keeps(hosts.pillar(minion), minion, book.hosts)
        ]

    return gone


def _groups(
    judged_hosts: Mapping[str, str], waiting: Mapping[str, Mapping[str, int]]
) -> dict[tuple[tuple[str, ...], bool], list[str]]:
    """Return the minions to inform, in groups. A group gets one message, which names hosts.

    A group's key has these hosts, and whether the minions' own hosts are among them. Minions of peers come first: a
    distrusted host that is under an attacker's control shouldn't know of its cut before its peers do.
    """
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for few in (True, False):
        groups = {}
        for minion, names in waiting.items():
            own = judged_hosts.get(minion) in names
            groups.setdefault((tuple(sorted(names)) if few else (), own), []).append(minion)
        if len(groups) <= MOST_GROUPS:
            break
    return dict(sorted(groups.items(), key=lambda group: group[0][::-1]))


def _exchanged(
    declaration: FleetDeclaration, master: Master, hosts: Judged, changed: Collection[str]
) -> dict[str, str]:
    """Exchange keys for restored sealed links, because a host deletes the keys of a peer whose links are cut.

    :param changed: the hosts about whose change minions were informed.
    :return: errors, by the runner function that repeats the failed part.
    """
    book = declaration.trust.read()
    distrusted = book.hosts
    minions = set[str]()
    for minion, host in hosts.hosts.items():
        if host in changed and minion not in distrusted:
            section = trust.served(hosts.pillar(minion), minion, distrusted, book.levels)["netspace"]
            if peers := joining.sealed_peers(section):
                minions |= {minion, *(hosts.peers(minion)[peer] for peer in peers)}
    if not minions:
        return {}

    def hand(minion: str, bundles: Sequence[str]) -> Any:
        adopted = master.ask([minion], "netspace_link.seal_adopt", {"bundles": list(bundles)})
        return adopted.get(minion, NetspaceError("did not answer in time"))

    problems = exchange(lambda: master.ask(sorted(minions), "netspace_link.seal_bundles", {}), hand)["problems"]
    return {SEALS: "; ".join(problems)} if problems else {}


def shown(declaration: FleetDeclaration, failed: Mapping[str, str], hosts: Judged) -> dict[str, Any]:
    """Return the present trust in all judged hosts as plain values.

    :param failed: why minions didn't revise their links, by minion.
    """
    book = declaration.trust.read()
    distrusted = {}
    for minion, one in sorted(book.hosts.items()):
        if minion not in hosts.hosts:
            continue
        pillar = hosts.pillar(minion)
        cut = sorted(trust.cut(pillar, minion, {minion: one}))
        every = sorted(trust.named(link) for link in pillar["netspace"].get("links", ()) if trust.far(link))
        distrusted[hosts.hosts[minion]] = {
            **msgspec.to_builtins(one),
            "minion": minion,
            "cut": cut,
            "reported": [name for name in every if name not in cut],
        }
    return {
        "hosts": len(hosts.hosts),
        "distrusted": distrusted,
        "asked_again": {
            hosts.hosts[minion]: since for minion, since in sorted(book.expiring.items()) if minion in hosts.hosts
        },
        "waiting": {
            **dict.fromkeys(sorted(book.waiting), "it is informed again at the next look"),
            **{minion: text for minion, text in failed.items() if minion in book.waiting or minion in (SEALS, ATTEST)},
        },
    }
