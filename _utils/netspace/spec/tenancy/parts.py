"""Checks of the parts that tenants write themselves: a part names nothing beyond its own tenant. Pure.

The author of a part may be hostile. So messages about its problems contain no names of other environments, and their
number and length are bounded. A part with a problem isn't merged into the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from netspace.errors import Problem
from netspace.spec.tenancy import names, permissions
from netspace.spec.types import Environment, Link, Runtimes, Tenant
from netspace.text import printable

MOST_PROBLEMS = 20
"""The most problems that are told of one tenant's part."""
_PATH, _MESSAGE = 200, 300


class Part(NamedTuple):
    """The values of a tenant's part that could be parsed.

    :param environments: the names of the environments of the tenant.
    :param links: the links, by their paths in the declaration.
    """

    environments: Collection[str]
    links: Mapping[str, Link]


class Reader(NamedTuple):
    """Functions of the parser. Each takes a value, its path, and a list to which it adds problems."""

    environments: Callable[[Any, str, list[Problem]], dict[str, Environment]]
    links: Callable[[Any, str, list[Problem]], dict[str, Link]]


def add(
    data: Mapping[str, Any],
    tenants: Mapping[str, Tenant],
    path: str,
    usual: Runtimes,
    every: dict[str, Environment],
    declared: Collection[Any],
    reader: Reader,
    problems: list[Problem],
) -> tuple[dict[str, Link], dict[str, str]]:
    """Add the environments of the tenants' own parts to *every*, and problems to *problems*.

    :param data: the sections of the tenants, as they were declared.
    :param path: the path of these sections.
    :param usual: the host's default runtimes.
    :param every: the operator's environments, by name.
    :param declared: the names of all environments that the operator declared. Some may be too wrong to be in *every*.
    :return: the links of the parts, by their paths; and the paths of the parts' environments, by name.
    """
    found: dict[str, Part] = {}
    moved: dict[str, str] = {}
    for name, tenant in tenants.items():
        section, where, wrong = data[name], f"{path}:{name}", list[Problem]()
        problems += unread(tenant, where)
        below = f"{where}:environments"
        environments = reader.environments(section.get("environments"), below, wrong)
        links = reader.links(section.get("links"), f"{where}:links", wrong)
        outside = {*every, *map(str, declared)}
        wrong += owned(name, tenant, environments, outside, below)
        named = {one: spec for one, spec in environments.items() if names.owns(name, tenant, one)}
        known = named.keys() | {one for one, spec in every.items() if spec.tenant == name}
        own = {one: msgspec.structs.replace(spec, tenant=name) for one, spec in named.items() if one not in outside}
        wrong += permitted(own, tenants, usual, below, known)
        problems += untold(wrong, where)
        if not wrong:  # a wrong part isn't merged: messages about its problems could name others' environments
            every.update(own)
            moved.update({one: f"{below}:{one}" for one in own})
            found[name] = Part(known, links)
    linked, wrong = inside(found)
    problems += untold(wrong, path)
    return linked, moved


def placed(problems: Iterable[Problem], path: str, moved: Mapping[str, str]) -> list[Problem]:
    """Return problems with the real paths of parts' environments, and fit for the operator's terminal.

    :param path: the path of the operator's environments. Later checks assume that all environments are there.
    :param moved: the real paths of parts' environments, by name.
    """
    found = []
    for one in problems:
        name = one.path.removeprefix(f"{path}:").partition(":")[0] if one.path.startswith(f"{path}:") else ""
        if name in moved:
            rest = one.path.removeprefix(f"{path}:{name}")
            one = Problem(moved[name] + printable(rest)[:_PATH], printable(one.message)[:_MESSAGE])
        found.append(one)
    return found


def untold(problems: Sequence[Problem], path: str) -> list[Problem]:
    """Return the problems of a part without characters that could control the operator's terminal.

    :param path: the path of the part.
    """
    told = [Problem(printable(one.path)[:_PATH], printable(one.message)[:_MESSAGE]) for one in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        told.append(Problem(path, f"{len(problems) - MOST_PROBLEMS} more problems; correct the first ones"))
    return told


def unread(tenant: Tenant, path: str) -> Iterator[Problem]:
    """Yield a problem if the tenant's files weren't read. Otherwise an apply would remove the environments in them."""
    if tenant.include:
        yield Problem(f"{path}:include", "only a command on the host itself reads these files; check it there")


def owned(
    name: str, tenant: Tenant, environments: Mapping[str, Environment], outside: Collection[str], path: str
) -> list[Problem]:
    """Return the problems of the names in a part of the tenant *name*, and each key ``tenant`` in it.

    :param outside: the names of the environments outside of the part.
    :param path: the path of the part's environments.
    """
    problems = []
    for one, spec in environments.items():
        if not names.owns(name, tenant, one):
            problems.append(Problem(f"{path}:{one}", names.foreign(one, name, tenant)))
        elif one in outside:
            problems.append(Problem(f"{path}:{one}", "the operator declares it already; leave one of the two out"))
        if spec.formerly is not None and not names.owns(name, tenant, spec.formerly):
            problems.append(Problem(f"{path}:{one}:formerly", names.foreign(spec.formerly, name, tenant)))
        if spec.tenant is not None:
            problems.append(Problem(f"{path}:{one}:tenant", "the tenant is that of this part; leave it out"))
    return problems


def permitted(
    environments: Mapping[str, Environment],
    tenants: Mapping[str, Tenant],
    usual: Runtimes,
    path: str,
    known: Collection[str] = (),
) -> Iterator[Problem]:
    """Yield a problem for each value of a tenant's environment that exceeds the tenant's permissions.

    :param environments: declared environments.
    :param usual: the host's default runtimes.
    :param path: the path of the environments.
    :param known: further environments of the same tenant.
    """
    for one, spec in environments.items():
        if spec.tenant is None or spec.tenant not in tenants:
            continue
        for key, message in permissions.beyond(spec, tenants[spec.tenant], usual):
            yield Problem(f"{path}:{one}:{key}", message)
        for key, other in _named(spec):
            its = environments.get(other)
            if other not in known and (its is None or its.tenant != spec.tenant):
                text = f"{other!r:.60} is not an environment of the tenant {spec.tenant}; leave it out"
                yield Problem(f"{path}:{one}:{key}", text)


def _named(spec: Environment) -> Iterator[tuple[str, str]]:
    """Yield the environments that an environment names in keys such as ``after``, apart from links: (key, name)."""
    for index, other in enumerate(spec.after):
        yield f"after:{index}", other
    for target, bound in spec.delegates.items():
        yield f"delegates:{target}", target
        for index, other in enumerate(bound.to):
            yield f"delegates:{target}:to:{index}", other


def inside(tenants: Mapping[str, Part]) -> tuple[dict[str, Link], list[Problem]]:
    """Return the links of all parts, by their paths, and problems.

    A tenant may declare any link between its own environments. A link between two tenants is accepted if the parts of
    both contain it with the same values. The problems of all other links have the same text, so that a tenant can't
    learn from it which names exist.

    :param tenants: the parts, by tenant.
    """
    links: dict[str, Link] = {}
    problems: list[Problem] = []
    across: dict[str, dict[str, Link]] = {}  # by name, the link as each tenant has it
    paths: dict[tuple[str, str], str] = {}
    for tenant, part in tenants.items():
        for where, link in part.links.items():
            ours = {link.source, link.target} & set(part.environments)
            if len(ours) == 2:
                links[where] = link
                continue
            if ours and "@" not in link.name and tenant not in across.get(link.name, {}):
                across.setdefault(link.name, {})[tenant] = link
                paths[tenant, link.name] = where
            else:
                problems.append(Problem(where, _outside(tenant)))
    for name, sides in across.items():
        if len(sides) == 2 and len(set(map(repr, sides.values()))) == 1:
            first = next(iter(sides))
            links[paths[first, name]] = sides[first]
        else:
            problems += [Problem(paths[tenant, name], _outside(tenant)) for tenant in sides]
    return links, problems


def _outside(tenant: str) -> str:
    return (
        f"an end isn't an environment of the tenant {tenant}; a link to another tenant must be in the parts of both, "
        "with the same values, and all other links are the operator's (links)"
    )
