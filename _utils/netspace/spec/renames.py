"""Renamed environments: checks of their former names, and the former names of their links' ends. Pure.

A renamed environment declares its former name (``formerly``), and keeps the mailbox of that name. So a wrong former
name could take another environment's mailbox. Therefore no other environment may have the name now, and a tenant may
use only names of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from netspace.errors import Problem
from netspace.spec import peer
from netspace.spec.types import NAME, NAME_RULE, Environment, FormerEnds, Link, host_of

KEY = "formerly"


def wrong(former: Mapping[str, str], taken: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the problems of former names: (environment, message).

    :param former: the former name of each renamed environment.
    :param taken: the names of all environments that are declared.
    """
    owners: dict[str, str] = {}
    for name, old in former.items():
        first = owners.setdefault(old, name)
        if not NAME.fullmatch(old):
            yield name, f"{old!r:.60} can't be an environment's name: use {NAME_RULE}"
        elif old == peer.NAME:
            yield name, f"{old} is the host itself; leave it out"
        elif old == name:
            yield name, f"{old} is its name now; leave it out"
        elif old in former:
            yield name, f"{old} is renamed as well; rename one of the two now, and the other after the apply"
        elif old in taken:
            yield name, f"{old} is declared, too, and keeps its own mailbox; remove {old}, or leave this out"
        elif first != name:
            yield name, f"{first} has this former name, too; only one of them can have its mailbox"


def declared(environments: Mapping[str, Environment]) -> dict[str, str]:
    """Return the former name of each environment that has one."""
    return {name: spec.formerly for name, spec in environments.items() if spec.formerly is not None}


def removed(environments: Mapping[str, Environment], gone: Collection[str]) -> dict[str, str]:
    """Return the former name of each environment whose former name is among *gone*, the names that leave this host."""
    return {name: old for name, old in declared(environments).items() if old in gone}


def told(links: Iterable[Link], former: Mapping[str, str]) -> tuple[Link, ...]:
    """Add the former names of this host's renamed environments to their links, and return all links.

    :param former: the former name of each renamed environment.
    """
    return tuple(_told(link, former) for link in links)


def _told(link: Link, former: Mapping[str, str]) -> Link:
    source, target = former.get(link.source), former.get(link.target)
    if source is None and target is None:
        return link
    given = link.formerly or FormerEnds()
    ends = FormerEnds(given.source or source, given.target or target)
    named: Link = msgspec.structs.replace(link, formerly=ends)
    return named


def problems(
    links: Mapping[str, Link], environments: Mapping[str, Environment], names: Collection[str], path: str
) -> list[Problem]:
    """Return the problems of the former names in a whole declaration.

    :param links: the declared links, by their paths, with the former names of this host's environments (:func:`told`).
    :param names: the names of all environments, including those that didn't parse.
    :param path: the path of the declaration.
    """
    former = declared(environments)
    found = [Problem(f"{path}:environments:{name}:{KEY}", message) for name, message in wrong(former, names)]
    there = {link.name for link in links.values()}
    owners: dict[str, str] = {}
    for where, link in links.items():
        if link.formerly is None or link.former_name == link.name:
            continue
        for key, end, old in (("from", link.source, link.formerly.source), ("to", link.target, link.formerly.target)):
            if old is None:
                continue
            if not NAME.fullmatch(old):
                found.append(
                    Problem(f"{where}:{KEY}:{key}", f"{old!r:.60} can't be an environment's name: use {NAME_RULE}")
                )
            elif host_of(end) is None and former.get(end) != old and end in environments:
                why = f"{end} is an environment of this host: declare {KEY} there, and leave it out here"
                found.append(Problem(f"{where}:{KEY}:{key}", why))
        name = str(link.former_name)
        if name in there and not found:
            found.append(Problem(f"{where}:{KEY}", f"the link {name} is declared, too, and keeps its own messages"))
        elif owners.setdefault(name, where) != where:
            found.append(Problem(f"{where}:{KEY}", f"the link at {owners[name]} has the same former ends"))
    return found
