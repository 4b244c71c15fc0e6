"""Children of environments: their places, which follow from templates (``spawns``), and their rights. Pure.

A template ``worker`` of the environment ``web`` with ``at_most: 2`` adds two stopped environments to the declaration,
``web-worker-1`` and ``web-worker-2``: the *places* of children. So the rights of children are declared before any
program asks for a child: assertions (``never``), plans and reachability count them. If a program spawns a child, the
host starts one of these environments with the program's values. The program can't give the child further rights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from netspace.errors import Problem
from netspace.spec import checks, peer, values
from netspace.spec.types import NAME, NAME_RULE, Declaration, Environment, Handed, Interface, Link, Template, host_of

VERB = "spawn"
VERBS = frozenset((VERB, "end", "children"))
"""The verbs that concern children. A child may ask for none of them."""
TEMPLATES, AT_MOST, LIFETIME, STOP_TIMEOUT = 8, 64, 7 * 86_400.0, 10.0
"""Bounds: templates of an environment, children of a template, seconds of a child's life and of its end."""


class Place(NamedTuple):
    """A place for a child.

    :param name: the child's name as an environment.
    :param template: the name of its template.
    """

    name: str
    template: str


def places(parent: str, spec: Environment) -> list[Place]:
    """Return the places of an environment's children, by template and number."""
    return [
        Place(f"{parent}-{name}-{number}", name)
        for name, template in sorted(spec.spawns.items())
        for number in range(1, template.at_most + 1)
    ]


def possible_parents(name: str) -> list[str]:
    """Return the names that the parent of an environment could have, if the environment is a place for a child."""
    words = name.split("-")
    return ["-".join(words[:end]) for end in range(1, len(words) - 1)]


def parent_of(name: str, known: Callable[[str], Environment | None]) -> str:
    """Return the parent to whose child the name *name* is reserved; empty if the name is not reserved for a child.

    :param known: returns an environment's declaration or record; None: there is none.
    """
    for parent in possible_parents(name):
        spec = known(parent)
        if spec is not None and any(place.name == name for place in places(parent, spec)):
            return parent
    return ""


def child(spec: Environment, template: Template, nowhere: Interface | None = None) -> Environment:
    """Return the declaration of a place: an environment that is stopped until a child runs in it.

    :param spec: its parent.
    :param nowhere: the interface of kind ``none``.
    """
    return Environment(
        image=template.image,
        source_hash=template.source_hash,
        command=template.command,
        args=template.args,
        env=template.env,
        user=template.user,
        working_dir=template.working_dir,
        limits=template.limits,
        interface=nowhere,
        read_only=True,
        runtime=spec.runtime,
        seccomp=spec.seccomp,
        apparmor=spec.apparmor,
        image_cache=spec.image_cache,
        state="stopped",
        restart="never",
        stop_timeout=template.stop_timeout,
        init=template.init,
        attestation=spec.attestation,
        audit=spec.audit,
        host=template.host,
        values=template.values,
        tenant=spec.tenant,
    )


def links(parent: str, spec: Environment, every: Collection[Link]) -> Iterator[tuple[str, Link]]:
    """Yield the links of an environment's children, each with its path below the environment.

    :param every: all links. The parent can pass only its own links on to children; a link that it lacks is left out.
    """
    own = {link.target: link for link in every if link.source == parent}
    for place in places(parent, spec):
        template, where = spec.spawns[place.template], f"spawns:{place.template}"
        for target, handed in template.links.items():
            if target in own:
                yield f"{where}:links:{target}", _narrowed(own[target], handed, place.name)
        for key, own_link, ends in (
            ("to_parent", template.to_parent, (place.name, parent)),
            ("from_parent", template.from_parent, (parent, place.name)),
        ):
            if own_link is not None:
                yield f"{where}:{key}", _narrowed(Link(source=ends[0], target=ends[1]), own_link, ends[0])


def _narrowed(link: Link, handed: Handed, source: str) -> Link:
    given = {key: value for key, value in msgspec.structs.asdict(handed).items() if value is not None}
    return msgspec.structs.replace(link, source=source, monitor=False, formerly=link.formerly_to, **given)


def exceeds(link: Link, own: Link | None, whose: str = "its parent's") -> str:
    """Return why a child's link exceeds its parent's link to the same receiver; empty if it doesn't.

    :param own: the parent's link; None: it has none.
    :param whose: the description of *own* in the answer.
    """
    if own is None:
        return "its parent has no such link"
    for key in ("rate", "size", "length", "ttl"):
        mine, most = getattr(link, key), getattr(own, key)
        if most is not None and (mine is None or mine > most):
            return f"{key} is beyond {whose} {most:g}"
    same = ("pattern", "seal", "attestation", "attested", "full", "content_type", "via")
    differing = [key for key in same if getattr(link, key) != getattr(own, key)]
    if link.monitor and not own.monitor:
        differing.append("monitor")
    if own.local != link.local and link.local is not None:
        differing.append("as")
    if differing:
        return f"{differing[0]} is not {whose}"
    return f"its messages would be kept when the broker ends, {whose} aren't" if link.durable > own.durable else ""


def beyond(children: Collection[Place], parent: str, every: Collection[Link]) -> dict[str, str]:
    """Return the links of these children that exceed their parent's links, each with the reason.

    :param every: all links that are in force.
    """
    names = {place.name for place in children}
    own = {link.target: link for link in every if link.source == parent}
    found = {}
    for link in every:
        if link.source in names and link.target != parent and not peer.is_link(link):
            why = exceeds(link, own.get(link.target))
        elif link.target in names and link.source != parent:
            why = f"{link.source} is not its parent"
        else:
            continue
        if why:
            found[link.name] = why
    return found


def within(declared: Declaration, permitted: tuple[Link, ...]) -> tuple[Link, ...]:
    """Return *permitted* without the links that would give a child more rights than its parent has."""
    more: dict[str, str] = {}
    for name, spec in declared.environments.items():
        if spec.spawns:
            more |= beyond(places(name, spec), name, permitted)
    return tuple(link for link in permitted if link.name not in more) if more else permitted


def mistyped(template: Template, given: Mapping[str, Any]) -> str:
    """Return why a template doesn't take these values; empty if it does."""
    for key, value in given.items():
        if key not in template.values:
            known = ", ".join(sorted(template.values)) or "none"
            return f"values:{key:.60}: not a value of the template; it has {known}"
        usual = template.values[key]
        if _kind(value) != _kind(usual):
            return f"values:{key}: expected {_kind(usual)}, got {_kind(value)}"
    found = next(values.problems({**template.values, **given}), None)
    return "" if found is None else f"{found[0]:.200}: {found[1]}"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    for kind, word in ((int, "a number"), (float, "a number"), (str, "a text"), (dict, "a mapping"), (list, "a list")):
        if isinstance(value, kind):
            return word
    return "a list" if isinstance(value, tuple) else "nothing"


def expand(declared: Declaration, path: str, nowhere: Interface) -> tuple[Declaration, list[str], list[Problem]]:
    """Add the places of all children, and the links of these places, to the declaration.

    Returns the new declaration, the paths of the added links, and the problems.

    :param path: the path of the declaration, for messages.
    :param nowhere: the interface of kind ``none``.
    """
    environments, found, problems = dict(declared.environments), dict[str, Link](), list[Problem]()
    made: dict[str, str] = {}  # the parent of each place
    for parent, spec in declared.environments.items():
        if not spec.spawns or any(wrong(parent, spec)):  # problems of templates are reported elsewhere
            continue
        where = f"{path}:environments:{parent}"
        problems += [Problem(f"{where}:{key}", message) for key, message in _links_wrong(parent, spec, declared.links)]
        for place in places(parent, spec):
            if place.name in declared.environments:
                message = f"{place.name} is the name of a child; give the template or that environment another name"
                problems.append(Problem(f"{where}:spawns:{place.template}", message))
            elif place.name in made:
                message = f"{place.name} is the name of a child of {made[place.name]}, too; rename the template"
                problems.append(Problem(f"{where}:spawns:{place.template}", message))
            made.setdefault(place.name, parent)
            environments[place.name] = child(spec, spec.spawns[place.template], nowhere)
        for key, link in links(parent, spec, declared.links):
            problems += [one for one in checks.link(link, f"{where}:{key}") if one not in problems]
            found[f"{where}:{key} ({link.name})"] = link
    own = environments.keys() - declared.environments.keys()
    problems += [
        Problem(f"{path}:links", f"{link.name}: {end} is a child, whose template declares its links; leave this out")
        for link in declared.links
        for end in (link.source, link.target)
        if end in own
    ]
    every = (*declared.links, *found.values())
    return msgspec.structs.replace(declared, environments=environments, links=every), list(found), problems


def _links_wrong(parent: str, spec: Environment, every: Collection[Link]) -> Iterator[tuple[str, str]]:
    own = {link.target: link for link in every if link.source == parent}
    for name, template in spec.spawns.items():
        for target, handed in template.links.items():
            key = f"spawns:{name}:links:{target}"
            if host_of(target) is not None:
                yield key, "leads to another host; a child may have only links within this host"
            elif target not in own:
                known = ", ".join(sorted(one for one in own if host_of(one) is None)) or "none"
                yield key, f"{parent} has no link to {target}, so its children can't have one; it has links to: {known}"
            elif why := exceeds(_narrowed(own[target], handed, parent), own[target]):
                yield key, f"{why}; lower it, or leave it out"


def wrong(parent: str, spec: Environment) -> Iterator[tuple[str, str]]:
    """Yield the problems of an environment's templates: (key, message)."""
    asks = VERBS & set(spec.host)
    if asks and not spec.spawns:
        yield "spawns", f"missing; host: [{', '.join(sorted(asks))}] needs a template"
    if not spec.spawns:
        return
    if VERB not in spec.host:
        yield "host", f"has no {VERB}, so no child can be started; add it, or leave out spawns"
    if spec.kernel is not None:
        yield "spawns", "an environment with a kernel can't have children; leave spawns out"
    if len(spec.spawns) > TEMPLATES:
        yield "spawns", f"{len(spec.spawns)} templates; at most {TEMPLATES} are accepted"
    for name, template in spec.spawns.items():
        key = f"spawns:{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield key, f"{name!r:.60} can't be a template's name: use {NAME_RULE}"
            continue
        if not 1 <= template.at_most <= AT_MOST:
            yield f"{key}:at_most", f"{template.at_most} is out of 1..{AT_MOST}"
            continue
        if not NAME.fullmatch(longest := f"{parent}-{name}-{template.at_most}"):
            yield key, f"{longest} is too long for the name of a child (48 characters); give a shorter name"
        if not 1 <= template.lifetime <= LIFETIME:
            yield f"{key}:lifetime", f"{template.lifetime:g} is out of 1..{LIFETIME:g} seconds"
        if not 0 <= template.stop_timeout <= STOP_TIMEOUT:
            yield f"{key}:stop_timeout", f"{template.stop_timeout:g} is out of 0..{STOP_TIMEOUT:g} seconds"
        for index, verb in enumerate(template.host):
            if verb in VERBS:
                yield f"{key}:host:{index}", f"{verb}: a child has no children; leave it out"
            elif verb not in spec.host:
                why = "its parent may not send this request, so a child can't either; leave it out"
                yield f"{key}:host:{index}", f"{verb}: {why}"
        inner = checks.environment(child(spec, template), "")
        yield from ((f"{key}{one.path}", one.message) for one in inner if _own(one.path))


def _own(path: str) -> bool:
    """Return whether a problem of a child comes from the child's template, not from its parent.

    :param path: the path of the problem in the child's declaration.
    """
    return path.split(":")[1] in Template.__struct_fields__ and not path.startswith(":host")
