"""Parser of pillar and state arguments. It returns typed values, or every problem with its path.

msgspec checks the types. Its import takes 0.02 s; similar libraries take 0.2 s and more. This module adds the full path
in pillar notation and the nearest valid name to each problem. It reports all problems at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from netspace.errors import Problem, SpecError
from netspace.spec import checks, delegations, extensions, hosts, never, peer, publish, renames, spawns
from netspace.spec.publish import Publication, Routed
from netspace.spec.types import (
    NAME,
    NAME_RULE,
    Address,
    Attestation,
    Broker,
    Cidr,
    Declaration,
    Delegable,
    Environment,
    HostName,
    Interface,
    Link,
    Network,
    Never,
    Prefixed,
    Rate,
    Runtimes,
    Size,
    Template,
    Tenant,
)

T = TypeVar("T")

MOST_PROBLEMS = 20
"""The most problems of types that are reported of one part of a declaration."""


def declaration(data: Any, path: str = "netspace") -> Declaration:
    """Parse a whole host's declaration.

    :param data: the mapping under ``pillar:netspace``.
    :param path: its path, for messages.
    :raises SpecError: with every problem, in pillar notation.
    """
    problems: list[Problem] = []
    if not isinstance(data, Mapping):
        raise SpecError([Problem(path, f"expected a mapping, got {_kind_of(data)}")])
    _report_unknown(data, Declaration, path, problems)

    def part(key: str, of: Any, default: T) -> T:
        if data.get(key) is None:
            return default
        return _try(lambda: convert(data[key], of, f"{path}:{key}"), default, problems)

    settings = part("attestation", Attestation, Attestation())
    broker: Broker = part("broker", Broker, Declaration().broker)
    network = part("network", Network, Network())
    chosen = _try(lambda: runtimes(data.get("runtimes"), f"{path}:runtimes"), Runtimes(), problems)

    declared, environments = _environments(data.get("environments"), f"{path}:environments", problems, chosen)
    links = _links(data.get("links"), f"{path}:links", problems)
    if broker.host is not None:
        links = {where: own for where, one in links.items() for own in hosts.local((one,), broker)}
    rights: dict[str, Tenant] = {}
    moved: dict[str, str] = {}
    if data.get("tenants") is not None:
        from netspace.spec.tenancy import parts  # most hosts have no tenants, and each command would import it

        rights = tenants(data["tenants"], f"{path}:tenants", problems)
        problems += parts.permitted(environments, rights, chosen, f"{path}:environments")
        reader = parts.Reader(lambda value, where, wrong: _environments(value, where, wrong, chosen)[1], _links)
        joined, moved = parts.add(
            data["tenants"], rights, f"{path}:tenants", chosen, environments, declared, reader, problems
        )
        links.update(joined)

    if renamed := renames.declared(environments):
        links = dict(zip(links, renames.told(links.values(), renamed), strict=True))
    asserted = _asserted(data.get("never"), broker, f"{path}:never", problems)
    result = Declaration(
        attestation=settings,
        broker=broker,
        network=network,
        runtimes=chosen,
        environments=environments,
        links=tuple(links.values()),
        never=tuple(asserted.values()),
        tenants=rights,
    )
    places = list(links)
    if any(spec.spawns for spec in environments.values()):
        result, more, wrong = spawns.expand(result, path, interface(None))
        places += more
        problems += wrong
    if any(spec.delegates for spec in environments.values()):
        result, more, wrong = delegations.expand(result, path)
        places += more
        problems += wrong
    if renamed:  # the links between a parent and its children have its former name, too
        result = msgspec.structs.replace(result, links=renames.told(result.links, renamed))
    # Environments that didn't parse count as declared, so that links to them aren't reported as well.
    names = {*map(str, declared), *result.environments}
    problems.extend(checks.clashes(result, path, known=names, places=places))
    problems.extend(checks.whole(result, path, names))
    if renamed or any(one.formerly is not None for one in links.values()):
        problems += renames.problems(links, result.environments, names, path)
    problems.extend(checks.assertions(result, asserted, names))
    if data.get("tenants") is not None or any(spec.tenant is not None for spec in result.environments.values()):
        problems = _of_tenants(result, path, problems, moved)
    if problems:
        raise SpecError(problems)
    return result


def _of_tenants(declared: Declaration, path: str, problems: list[Problem], moved: Mapping[str, str]) -> list[Problem]:
    """Return *problems* and the problems of tenants, with the paths at which tenants' environments were declared.

    :param moved: the real paths, by the environments' names.
    """
    from netspace.spec.tenancy import names, parts, quota, separation

    found = [*problems, *names.misplaced(declared, path), *quota.problems(declared, path)]
    return parts.placed([*found, *separation.problems(declared, path)], f"{path}:environments", moved)


def _environments(
    data: Any, path: str, problems: list[Problem], usual: Runtimes
) -> tuple[Mapping[Any, Any], dict[str, Environment]]:
    """Return the declared mapping (empty if *data* is none), and the environments that could be parsed."""
    environments: dict[str, Environment] = {}
    declared = {} if data is None else data
    if not isinstance(declared, Mapping):
        problems.append(Problem(path, f"expected a mapping of names, got {_kind_of(declared)}"))
        declared = {}
    for name, value in declared.items():
        where = f"{path}:{name}"
        parsed, wrong = _environment(name, value, where, usual)
        problems += wrong
        # Checked here, not in _environment(): records of environments that have this name must stay readable.
        if name == peer.NAME:
            problems.append(Problem(where, peer.RESERVED))
        # Keep an environment with problems, so that conflicts with other parts are reported at the same time.
        if parsed is not None and isinstance(name, str) and NAME.fullmatch(name):
            environments[name] = parsed
    return declared, environments


def _links(listed: Any, path: str, problems: list[Problem]) -> dict[str, Link]:
    """Return the links that could be parsed, by their paths in the declaration."""
    if listed is not None and not isinstance(listed, (list, tuple)):
        problems.append(Problem(path, f"expected a list, got {_kind_of(listed)}"))
        return {}
    found = {}
    for index, value in enumerate(listed or ()):
        parsed = _try(functools.partial(link, value, f"{path}:{index}"), None, problems)
        if parsed is not None:
            found[f"{path}:{index}"] = parsed
    return found


def tenants(data: Any, path: str, problems: list[Problem]) -> dict[str, Tenant]:
    """Return each tenant's permissions, without the tenants' own parts. Add problems to *problems*.

    A tenant whose section is wrong has no permission at all.

    :param data: the section ``tenants``.
    """
    from netspace.spec.tenancy import names, permissions, quota

    if not isinstance(data, Mapping):
        problems.append(Problem(path, f"expected a mapping of names, got {_kind_of(data)}"))
        return {}
    found: dict[str, Tenant] = {}
    for name, section in data.items():
        where = f"{path}:{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(Problem(where, f"{name!r:.60} can't be a tenant's name: use {NAME_RULE}"))
            continue
        own = section
        if isinstance(section, Mapping):
            own = {key: value for key, value in section.items() if key not in ("environments", "links")}
        wrong: list[Problem] = []
        parsed: Tenant | None = _try(functools.partial(convert, own, Tenant, where), None, wrong)
        if parsed is not None:
            kinds = [
                _try(functools.partial(interface, one, f"{where}:interfaces:{index}"), interface(None), wrong)
                for index, one in enumerate(parsed.interfaces)
            ]
            parsed = msgspec.structs.replace(parsed, interfaces=tuple(kinds))
            wrong += [Problem(f"{where}:{key}", message) for key, message in permissions.wrong(parsed)]
            wrong += [Problem(f"{where}:quota:{key}", message) for key, message in quota.unsound(parsed.quota)]
            found[name] = parsed
        problems += wrong
    problems += names.wrong(found, path)
    problems += names.known(found, path)
    problems += permissions.shared(found, path)
    return found


def _asserted(listed: Any, broker: Broker, path: str, problems: list[Problem]) -> dict[str, Never]:
    """Return the assertions (``never``) that concern this host, by their paths in the declaration.

    Add the problems of all assertions to *problems*.
    """
    if listed is not None and not isinstance(listed, (list, tuple)):
        problems.append(Problem(path, f"expected a list, got {_kind_of(listed)}"))
        return {}
    found = {}
    for index, value in enumerate(listed or ()):
        where = f"{path}:{index}"
        parsed: Never | None = _try(functools.partial(convert, value, Never, where), None, problems)
        wrong = [] if parsed is None else never.check(parsed, where)
        problems += wrong
        own = never.local(parsed, broker) if parsed is not None and not wrong else None
        if own is not None:
            found[where] = own
    return found


def environment(name: Any, data: Any, usual: Runtimes | None = None) -> Environment:
    """Parse one environment from state arguments. In messages, the path is the environment's name.

    :param usual: the host's default runtimes; None: skip the checks of the runtime's demands.
    """
    parsed, problems = _environment(name, data, str(name), usual)
    if problems or parsed is None:
        raise SpecError(problems)
    return parsed


def _environment(name: Any, data: Any, where: str, usual: Runtimes | None) -> tuple[Environment | None, list[Problem]]:
    """Parse one environment. Return it (None if a type is wrong), and all its problems."""
    problems: list[Problem] = []
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(Problem(where, f"{name!r} can't be an environment's name: use {NAME_RULE}"))
    misread = list(_templates(data, where))
    problems += misread
    parsed = None
    if not misread:
        parsed = _try(lambda: convert(data, Environment, where), None, problems)
    parsed_interface: Interface | None = None
    if isinstance(data, Mapping):
        parsed_interface = _try(lambda: interface(data.get("interface"), f"{where}:interface"), None, problems)
    if parsed is not None:
        problems.extend(checks.environment(parsed, where))
        problems += [Problem(f"{where}:{key}", message) for key, message in spawns.wrong(str(name), parsed)]
        problems += [Problem(f"{where}:{key}", message) for key, message in delegations.wrong(parsed)]
        if parsed.kernel is not None and parsed_interface is not None:
            kind = extensions.interface_kind(parsed_interface)
            if kind not in ("none", "tap"):
                problems.append(
                    Problem(f"{where}:interface:kind", f"{kind!r}: a kernel has a network stack of its own; use tap")
                )
        if usual is not None:
            problems += checks.under(parsed, checks.used(parsed, usual), where)
        parsed = msgspec.structs.replace(parsed, interface=parsed_interface)
    return parsed, problems


_PARTS: Mapping[str, Any] = {"spawns": Template, "delegates": Delegable}


def _templates(data: Any, where: str) -> Iterator[Problem]:
    """Yield the problems of the types in an environment's templates and delegations, each with its name in its path."""
    for key, kind in _PARTS.items():
        listed = data.get(key) if isinstance(data, Mapping) else None
        for name, value in listed.items() if isinstance(listed, Mapping) else ():
            try:
                convert(value, kind, f"{where}:{key}:{name}")
            except SpecError as err:
                yield from err.problems


def interface(data: Any, path: str = "interface") -> Interface:
    """Parse one interface of any kind. If *data* is None, the kind is ``none``."""
    if data is None:
        data = {"kind": "none"}
    kind = data.get("kind") if isinstance(data, Mapping) else None
    of = extensions.interface_type(kind)
    if isinstance(data, Mapping) and "publish" in data and isinstance(of, type) and not issubclass(of, Routed):
        raise SpecError([Problem(f"{path}:publish", publish.misplaced(str(kind)))])
    parsed: Interface = convert(data, of, path)
    problems = checks.interface(parsed, path)
    if problems:
        raise SpecError(problems)
    return parsed


def runtimes(data: Any, path: str = "runtimes") -> Runtimes:
    """Parse the default runtimes and each runtime's settings. If *data* is None, all have their defaults."""
    if data is None:
        return Runtimes()
    if not isinstance(data, Mapping):
        raise SpecError([Problem(path, f"expected a mapping, got {_kind_of(data)}")])
    known = extensions.runtimes()
    problems: list[Problem] = []
    settings: dict[str, Any] = {}
    defaults = [key for key in Runtimes.__struct_fields__ if key != "settings"]
    for name, value in data.items():
        if name in defaults:
            continue
        if name not in known:
            from netspace.spec import mistakes

            near = mistakes.suggest(str(name), [*defaults, *known])
            problems.append(Problem(f"{path}:{name}", "unknown" + near))
            continue
        of, where = extensions.runtime(name).Settings, f"{path}:{name}"
        own = _try(functools.partial(convert, value, of, where), None, problems)
        if own is not None:
            problems += checks.runtime_settings(own, where)
            given = encode(own)
            settings[name] = {key: value for key, value in given.items() if value != encode(of())[key]}
    chosen = {key: data[key] for key in defaults if data.get(key) is not None}
    parsed = _try(lambda: convert(chosen, Runtimes, path), Runtimes(), problems)
    problems += checks.runtimes(parsed, path)
    if problems:
        raise SpecError(problems)
    complete: Runtimes = msgspec.structs.replace(parsed, settings=settings)
    return complete


def link(data: Any, path: str = "link") -> Link:
    """Parse one link."""
    for key in checks.LINK_REFUSED if isinstance(data, Mapping) else ():
        if key in data:
            raise SpecError([Problem(f"{path}:{key}", checks.LINK_REFUSED[key])])
    parsed: Link = convert(data, Link, path)
    problems = checks.link(parsed, path)
    if problems:
        raise SpecError(problems)
    return parsed


def encode(value: Any) -> Any:
    """Return *value* as plain mappings, lists and scalars. The parser accepts the result."""
    plain = msgspec.to_builtins(value, builtin_types=(), enc_hook=_encode)
    if isinstance(value, Declaration):
        plain["runtimes"].update(plain["runtimes"].pop("settings"))
    return plain


def written(value: Any) -> Any:
    """Return *value* like :func:`encode`, with sizes and rates as a declaration has them (``128M``)."""
    return msgspec.to_builtins(value, builtin_types=(), enc_hook=_write)


def _write(value: Any) -> Any:
    return value.written if isinstance(value, (Size, Rate)) else _encode(value)


@functools.cache
def _fields(of: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of a type. msgspec evaluates the annotations anew at each call, which takes half a ms."""
    return msgspec.structs.fields(of)


def beyond_defaults(value: msgspec.Struct) -> dict[str, Any]:
    """Return *value* like :func:`written`, but without empty values and defaults, at every depth."""
    plain: dict[str, Any] = written(value)
    for field in _fields(type(value)):
        key, now = field.encode_name, getattr(value, field.name)
        factory = field.default_factory
        default = field.default if factory is msgspec.NODEFAULT else factory()
        if now == default or plain.get(key) in (None, (), [], {}, ""):
            plain.pop(key, None)
        elif isinstance(now, msgspec.Struct) and not (inner := beyond_defaults(now)):
            del plain[key]
        elif isinstance(now, msgspec.Struct):
            plain[key] = inner
    return plain


def _encode(value: Any) -> Any:
    if isinstance(value, (Size, Rate)):
        return int(value)
    if isinstance(value, (Cidr, Address, HostName, Prefixed, Publication)):
        return str(value)
    raise NotImplementedError(type(value))


def convert(data: Any, of: Any, path: str) -> Any:
    """Convert *data* to the type *of*. Problems have *path* before their keys, in pillar notation."""
    problems: list[Problem] = []
    rest = data
    while True:
        try:
            value = msgspec.convert(rest, of, strict=True, dec_hook=_decode)
        except msgspec.ValidationError as err:
            from netspace.spec import mistakes  # a declaration without mistakes doesn't need it

            problem, keys = mistakes.problem(err, rest, of, path)
            # If a key was left out because of its own problem, it is not also reported as missing.
            missed = bool(problems) and str(err).startswith("Object missing required field")
            problems += [] if missed else [problem]
            rest = None if missed or len(problems) == MOST_PROBLEMS else mistakes.without(rest, keys)
            if rest is None:
                raise SpecError(problems) from err
        except (ValueError, RecursionError) as err:  # a number too large, a document too deep
            raise SpecError([*problems, Problem(path, str(err))]) from err
        else:
            if problems:
                raise SpecError(problems)
            return value


def _decode(of: type, value: Any) -> Any:
    if of in (Size, Rate, Cidr, Address, HostName, Prefixed, Publication):
        return of.parse(value)
    raise NotImplementedError(of)


def _report_unknown(data: Mapping[Any, Any], of: type, path: str, problems: list[Problem]) -> None:
    names = [field.encode_name for field in _fields(of)]
    for key in data:
        if key not in names:
            from netspace.spec import mistakes

            problems.append(Problem(f"{path}:{key}", "unknown" + mistakes.suggest(str(key), names)))


def _kind_of(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), type(value).__name__
    )


def _try(parse: Callable[[], T], default: T, problems: list[Problem]) -> T:
    try:
        return parse()
    except SpecError as err:
        problems.extend(err.problems)
        return default
