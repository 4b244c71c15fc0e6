"""Delegations: rights that a program may give to others, derived from its own links (``delegates``). Pure.

If ``web`` has ``delegates: {orders: {to: [till]}}``, its program may ask its host to make a link from ``till`` to
``orders`` for some time. Such a *possible* link is a part of the declaration from the beginning, with the greatest
limits that it can have: assertions (``never``), plans and reachability count it. An apply makes only the possible links
that a program has requested (:func:`standing`).

A possible link has exactly one holder, the environment whose link it derives from. The declaration may permit the
receiver of a right to delegate it again. Because of the one holder, holders can't delegate a right to each other in a
circle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import msgspec

from netspace.errors import Problem
from netspace.spec import checks, spawns
from netspace.spec.types import NAME, Declaration, Delegable, Environment, Link

VERB = "delegate"
VERBS = frozenset((VERB, "revoke", "delegations"))
"""The verbs that concern delegations. A child may ask for none of them."""
LINKS, RECEIVERS, LIFETIME, LENGTH = 8, 16, 7 * 86_400.0, 100
"""Bounds: links that an environment may delegate, environments that may get one, seconds, and waiting messages."""


class Possible(NamedTuple):
    """A link that a host may make at a program's request.

    :param holder: the environment whose program may request it.
    :param to: the environment that would get the right.
    :param target: the receiver of its messages.
    """

    holder: str
    to: str
    target: str

    @property
    def name(self) -> str:
        """The name that the delegated link would have."""
        return f"{self.to}.{self.target}"

    @property
    def of(self) -> str:
        """The name of the holder's link, from which this one derives."""
        return f"{self.holder}.{self.target}"


class Granted(NamedTuple):
    """The limits with which a right was delegated.

    :param holder: the environment whose program delegated it.
    """

    holder: str
    rate: float | None
    size: int | None
    length: int | None


def possible(environments: Mapping[str, Environment]) -> dict[str, Possible]:
    """Return all links that programs of these environments may request, by name."""
    found = [
        Possible(holder, to, target)
        for holder, spec in environments.items()
        for target, bound in spec.delegates.items()
        for to in bound.to
    ]
    return {one.name: one for one in found}


def widest(environments: Mapping[str, Environment], links: Collection[Link]) -> dict[str, Link]:
    """Return the links that programs may request, by name, each with the greatest limits that it can have.

    :param links: the links from which they may derive. Delegated links among them are ignored.
    """
    wanted = possible(environments)
    own = {link.name: link for link in links if link.name not in wanted}
    return {one.name: link for one, link in _made(wanted, own, lambda one, link: most(environments, one, link))}


def most(environments: Mapping[str, Environment], one: Possible, own: Link) -> Link:
    """Return a possible link with the greatest limits that it can have.

    :param own: the holder's link.
    """
    bound = environments[one.holder].delegates[one.target]
    limits = {
        "rate": _least(own.rate, bound.rate),
        "size": _least(own.size, bound.size),
        "length": _least(own.length, bound.length or (LENGTH if own.length is None else None)),
    }
    return msgspec.structs.replace(own, source=one.to, local=None, monitor=False, formerly=own.formerly_to, **limits)


def _least(*bounds: float | None) -> float | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _made(
    wanted: Mapping[str, Possible], own: Mapping[str, Link], make: Callable[[Possible, Link], Link | None]
) -> Iterator[tuple[Possible, Link]]:
    """Make possible links, and yield each after the link from which it derives.

    A link is left out if its holder lacks the link from which it derives, or if *make* returns None.
    """
    waiting: dict[str, list[Possible]] = {}
    for name in sorted(wanted):
        waiting.setdefault(wanted[name].of, []).append(wanted[name])
    held = [link for name, link in own.items() if name in waiting]
    while held:
        link = held.pop()
        for one in waiting.pop(link.name, ()):
            made = make(one, link)
            if made is not None:
                yield one, made
                held.append(made)


def standing(
    environments: Mapping[str, Environment], permitted: Collection[Link], granted: Mapping[str, Granted]
) -> tuple[Link, ...]:
    """Return the links to make: *permitted* links that aren't delegated, and delegated ones (*granted*) still in force.

    A delegated link is in force as long as its holder has the link that it derives from, with limits that aren't lower.

    :param environments: the environments with ``delegates``; others are ignored.
    :param permitted: the declared links, with all links that programs may request.
    :param granted: the delegations, by the names of their links.
    """
    wanted = possible(environments)
    if not wanted:
        return tuple(permitted)
    allowed = {link.name for link in permitted}
    own = {link.name: link for link in permitted if link.name not in wanted}
    count: dict[str, int] = {}

    def make(one: Possible, link: Link) -> Link | None:
        terms = granted.get(one.name)
        if terms is None or terms.holder != one.holder or one.name not in allowed:
            return None
        bound, widest_now = environments[one.holder].delegates[one.target], most(environments, one, link)
        limits = {"rate": terms.rate, "size": terms.size, "length": terms.length}
        made = msgspec.structs.replace(widest_now, **limits)
        if exceeds(made, widest_now) or count.get(one.of, 0) >= at_most(bound):
            return None
        count[one.of] = count.get(one.of, 0) + 1
        return made

    return (*own.values(), *(link for _, link in _made(wanted, own, make)))


def always(declared: Declaration) -> list[Link]:
    """Return the declared links that don't depend on requests of programs."""
    wanted = possible(declared.environments)
    return [link for link in declared.links if link.name not in wanted]


def at_most(bound: Delegable) -> int:
    """Return the number of environments that may have a delegated right at the same time."""
    return len(bound.to) if bound.at_most is None else bound.at_most


def exceeds(link: Link, own: Link | None) -> str:
    """Return why a delegated link exceeds the rights that may be delegated; empty if it doesn't.

    :param own: the greatest right that may be delegated; None: none.
    """
    return spawns.exceeds(link, own, "what may be delegated,")


def expand(declared: Declaration, path: str) -> tuple[Declaration, list[str], list[Problem]]:
    """Return the declaration with all links that programs may request, the paths of these links, and problems.

    :param path: the path of the declaration, for messages.
    """
    problems: list[Problem] = []
    sound = {name: spec for name, spec in declared.environments.items() if spec.delegates and not any(wrong(spec))}
    links = {link.name: link for link in declared.links}
    made = widest(sound, declared.links)
    holders: dict[str, str] = {}
    bad: set[str] = set()  # reported here, so not again as links
    for holder, spec in sound.items():
        for target, bound in spec.delegates.items():
            where = f"{path}:environments:{holder}:delegates:{target}"
            own = links.get(f"{holder}.{target}") or made.get(f"{holder}.{target}")
            problems += [Problem(f"{where}{key}", text) for key, text in _bound_wrong(declared, holder, target, own)]
            for index, to in enumerate(bound.to):
                name = f"{to}.{target}"
                if why := _receiver_wrong(declared, links, holder, to, target):
                    problems.append(Problem(f"{where}:to:{index}", why))
                    bad.add(name)
                elif name in holders:
                    why = f"{holders[name]} may delegate this to {to}, too; only one may"
                    problems.append(Problem(f"{where}:to:{index}", why))
                holders.setdefault(name, holder)
            if own is not None:
                for key in ("rate", "size", "length"):
                    mine, limit = getattr(bound, key), getattr(own, key)
                    if mine is not None and limit is not None and mine > limit:
                        problems.append(
                            Problem(f"{where}:{key}", f"exceeds {holder}'s own limit of {limit:g}; lower it")
                        )
    found = {}
    wanted = possible(sound)
    for name, link in made.items():
        if name not in links and name not in bad:
            one = wanted[name]
            where = f"{path}:environments:{one.holder}:delegates:{one.target}"
            problems += [problem for problem in checks.link(link, where) if problem not in problems]
            found[f"{where} ({name})"] = link
    every = (*declared.links, *found.values())
    return msgspec.structs.replace(declared, links=every), list(found), problems


def _bound_wrong(declared: Declaration, holder: str, target: str, own: Link | None) -> Iterator[tuple[str, str]]:
    if own is None:
        yield "", f"{holder} has no link to {target}, and nobody may delegate one to it; leave it out"
    elif spawns.parent_of(target, declared.environments.get):
        yield "", f"{target} is a child, whose template declares its links; leave it out"


def _receiver_wrong(declared: Declaration, links: Mapping[str, Link], holder: str, to: str, target: str) -> str:
    if to == target:
        return f"{to} is the receiver itself; leave it out"
    if f"{holder}.{to}" not in links:
        return (
            f"{holder} has no link to {to} on this host, so it can't give {to} a right; add the link, or leave it out"
        )
    if f"{to}.{target}" in links:
        return f"{to} has a link to {target} of its own; leave it out"
    return ""


def wrong(spec: Environment) -> Iterator[tuple[str, str]]:
    """Yield the problems of an environment's key ``delegates``: (key, message)."""
    asks = VERBS & set(spec.host)
    if asks and not spec.delegates:
        yield "delegates", f"missing; host: [{', '.join(sorted(asks))}] needs a link that may be delegated"
    for name, template in spec.spawns.items():
        for index, verb in enumerate(template.host):
            if verb in VERBS:
                yield f"spawns:{name}:host:{index}", f"{verb}: a child delegates nothing; leave it out"
    if not spec.delegates:
        return
    if VERB not in spec.host:
        yield "host", f"has no {VERB}, so nothing can be delegated; add it, or leave out delegates"
    if len(spec.delegates) > LINKS:
        yield "delegates", f"{len(spec.delegates)} links; at most {LINKS} can be delegated"
    for target, bound in spec.delegates.items():
        key = f"delegates:{target}"
        if not isinstance(target, str) or not NAME.fullmatch(target):
            yield key, f"{target!r:.60} isn't an environment of this host; only links within it can be delegated"
            continue
        if not 1 <= len(bound.to) <= RECEIVERS:
            yield f"{key}:to", f"{len(bound.to)} environments; expected 1 to {RECEIVERS}"
        for index, to in enumerate(bound.to):
            if not NAME.fullmatch(to):
                yield f"{key}:to:{index}", f"{to!r:.60} can't be an environment's name"
            elif to in bound.to[:index]:
                yield f"{key}:to:{index}", f"{to} is listed twice; leave one out"
        if bound.at_most is not None and not 1 <= bound.at_most <= RECEIVERS:
            yield f"{key}:at_most", f"{bound.at_most} is out of 1..{RECEIVERS}"
        if not 1 <= bound.lifetime <= LIFETIME:
            yield f"{key}:lifetime", f"{bound.lifetime:g} is out of 1..{LIFETIME:g} seconds"
