"""Conversion of Salt's arguments, pillar and configuration to typed values. Reads the files of tenants, and no others.

State arguments have the same names as the keys of the declaration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netspace.errors import NetspaceError, Problem, SpecError
from netspace.layout import INSTANCE, Layout
from netspace.spec import checks, hosts, parse, peer
from netspace.spec.types import Declaration, Link, LocalBroker, Network

_SETTINGS = ("attestation", "broker", "network", "runtimes", "never")
"""Parts of ``pillar:netspace`` that also apply to an environment, interface or link that a state declares alone."""

_IN_PILLAR = "declare it in the pillar, and apply the pillar (state.apply netspace)"
ROWS = 100
"""The greatest number of rows in a state's result, by default: what an operator may want to read on a terminal."""


def seconds(timeout: object, most: int = 3600) -> int:
    """Return *timeout* (seconds) if it is a valid time limit of a command.

    :param most: the longest time limit that is accepted.
    :raises NetspaceError: it is no whole number from 1 to 3600.
    """
    if type(timeout) is not int or not 1 <= timeout <= most:
        raise NetspaceError(f"timeout: {str(timeout)!r:.40}: expected 1 to {most} whole seconds")
    return timeout


def arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return *kwargs* without the keys that Salt adds (``__id__`` and others with this prefix, and ``aggregate``)."""
    return {key: value for key, value in kwargs.items() if not key.startswith("__") and key != "aggregate"}


def refuse_others(given: Mapping[str, object]) -> None:
    """Raise Python's error for unknown keyword arguments. Arguments that Salt adds (``__pub_fun``) are ignored.

    Salt 3006 passes a keyword argument that comes after ``*names`` only to a function that takes arbitrary ones (fixed
    in 3007). So such a function takes ``**others``, and passes them to this function.

    :param given: the keyword arguments without a parameter of their own.
    :raises TypeError: *given* has an unknown argument.
    """
    if unknown := sorted(key for key in given if not key.startswith("__")):
        raise TypeError(f"unknown arguments: {', '.join(unknown)}")


def layout(opts: Mapping[str, Any]) -> Layout:
    """Return the layout of the instance that the minion's configuration names (``netspace.instance``).

    :raises NetspaceError: the name is invalid.
    """
    instance = opts.get("netspace.instance", "netspace")
    if not isinstance(instance, str) or not INSTANCE.fullmatch(instance):
        raise NetspaceError(
            f"minion configuration: netspace.instance: {instance!r}: expected a letter, then up to 15 of a-z and 0-9"
        )
    return Layout(instance)


def rows(opts: Mapping[str, Any]) -> int:
    """Return the greatest number of rows in a state's result (``netspace.rows`` of the minion's configuration).

    :raises NetspaceError: it is not a number.
    """
    most = opts.get("netspace.rows", ROWS)
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise NetspaceError(f"minion configuration: netspace.rows: {most!r}: expected a number, 0 for no rows")
    return most


def minion(opts: Mapping[str, Any]) -> str:
    """Return the minion's id.

    While Salt applies states in an environment that is one of its targets, ``opts["id"]`` is the target's id instead.
    """
    return str(opts.get("netspace.minion") or opts["id"])


def targets_wanted(opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> bool:
    """Return whether the pillar enables targets, and this process is the minion, not ``salt-call``."""
    return opts.get("__cli") != "salt-call" and _looked_for(opts, pillar)


def _looked_for(opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> bool:
    """Return whether the pillar makes Salt 3008 look for netspace's targets on this minion."""
    section = pillar.get(_pillar_key(opts))
    return isinstance(section, Mapping) and "netspace" in section


def _pillar_key(opts: Mapping[str, Any]) -> str:
    """Return the pillar key that lists a minion's types of resources (Salt's ``resource_pillar_key``)."""
    return str(opts.get("resource_pillar_key") or "resources")


def unaddressable(declared: Declaration, opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> list[str]:
    """Return the environments that are declared as targets although Salt is not configured to look for targets."""
    if _looked_for(opts, pillar):
        return []
    return sorted(name for name, spec in declared.environments.items() if spec.target)


def addressable(opts: Mapping[str, Any]) -> str:
    """Return the message about :func:`unaddressable` environments, with the remedy."""
    return f"Salt looks for no targets on this minion; add '{_pillar_key(opts)}: {{netspace: {{}}}}' to its pillar"


def tell_targets(salt: Mapping[str, Any], opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> None:
    """Let Salt refresh its list of targets. Before version 3008, Salt has no targets, and nothing is done.

    :param salt: Salt's execution functions.
    """
    if targets_wanted(opts, pillar) and "saltutil.refresh_resources" in salt:
        salt["saltutil.refresh_resources"]()


def whole(given: Mapping[str, Any] | None, pillar: Mapping[str, Any]) -> Declaration:
    """Return the host's declaration: *given*, or the one in ``pillar:netspace``.

    :raises SpecError: there is no declaration, or it is invalid.
    """
    data = pillar.get("netspace") if given is None else given
    if data is None:
        remedy = (
            "put a netspace: section into this minion's pillar, in a file that its top.sls names, and call "
            "saltutil.refresh_pillar"
        )
        raise SpecError([Problem("netspace", f"nothing is declared: {remedy}")])
    if not isinstance(data, Mapping) or data.get("tenants") is None:
        return parse.declaration(data)
    from netspace.plugin import tenant_files  # most hosts have no tenants, and each command would import it

    return tenant_files.declaration(data)


def network(pillar: Mapping[str, Any]) -> Network:
    """Return the address ranges from the pillar."""
    return _with(pillar).network


def one_environment(name: str, kwargs: Mapping[str, Any], pillar: Mapping[str, Any]) -> Declaration:
    """Return a declaration of one environment, from state arguments and the pillar's settings.

    :raises SpecError: it is invalid.
    """
    _free(name)
    _no_tenants((name,), pillar)
    settings = _with(pillar)
    spec = parse.environment(name, arguments(kwargs), settings.runtimes)
    if spec.tenant is not None:
        why = "it can't be given here, because a quota is for all environments of a tenant"
        raise SpecError([Problem(f"{name}:tenant", f"{why}; {_IN_PILLAR}")])
    if spec.host and not isinstance(settings.broker, LocalBroker):
        raise SpecError([Problem(f"{name}:host", peer.SHARED)])
    if spec.spawns:
        raise SpecError(
            [
                Problem(
                    f"{name}:spawns",
                    f"children need links, so they can't be declared for one environment alone; {_IN_PILLAR}",
                )
            ]
        )
    if spec.delegates:
        remedy = "declare it in the pillar, and apply the pillar (state.apply netspace)"
        raise SpecError(
            [
                Problem(
                    f"{name}:delegates", f"concerns links, so it can't be declared for one environment alone; {remedy}"
                )
            ]
        )
    return _with(pillar, environments={name: spec})


def _no_tenants(names: Iterable[str], pillar: Mapping[str, Any]) -> None:
    """Check that none of these names of environments belongs to a tenant of the pillar.

    A tenant's part can only be checked as a whole, not one environment alone.

    :raises SpecError: a name belongs to a tenant, or the pillar's tenants are invalid.
    """
    section = pillar.get("netspace")
    listed = section.get("tenants") if isinstance(section, Mapping) else None
    if listed is None:
        return
    from netspace.spec.tenancy import names as tenant_names

    problems: list[Problem] = []
    tenants = parse.tenants(listed, "netspace:tenants", problems)
    for name in names:
        if owner := tenant_names.owner(tenants, name):
            problems.append(Problem(name, f"this name belongs to the tenant {owner}; {_IN_PILLAR}"))
    if problems:
        raise SpecError(problems)


def _free(name: str) -> None:
    """Check that a name isn't ``host``, which is reserved for the host itself.

    :raises SpecError: it is that name.
    """
    if name == peer.NAME:
        raise SpecError([Problem(name, peer.RESERVED)])


def one_interface(name: str, kwargs: Mapping[str, Any], pillar: Mapping[str, Any]) -> Declaration:
    """Return a declaration of one interface (of the environment *name*), from state arguments."""
    _free(name)
    _no_tenants((name,), pillar)
    given = arguments(kwargs) or {"kind": "none"}
    spec = parse.environment(name, {"image": "dir:/", "interface": given})
    return _with(pillar, environments={name: spec})


def one_link(name: str, kwargs: Mapping[str, Any], pillar: Mapping[str, Any]) -> Declaration:
    """Return a declaration of one link, from state arguments, or from its name ``<from>.<to>`` alone."""
    declared = _with(pillar)
    parsed = _named(name, kwargs)
    _no_tenants((parsed.source, parsed.target), pillar)
    found = hosts.local((parsed,), declared.broker)
    problems = hosts.link(found[0] if found else parsed, declared.broker, name)
    problems += [Problem(f"{name}:{key}", message) for key, message in peer.misnamed(parsed)]
    if problems:
        raise SpecError(problems)
    return _with(pillar, links=found)


def link(name: str, kwargs: Mapping[str, Any], pillar: Mapping[str, Any]) -> Link:
    """Return the link that state arguments (``from``/``to``) or its name describe, even if this host can't have it."""
    parsed = _named(name, kwargs)
    return next(iter(hosts.local((parsed,), _with(pillar).broker)), parsed)


def _named(name: str, kwargs: Mapping[str, Any]) -> Link:
    given = arguments(kwargs)
    if "from" not in given and "to" not in given and name.count(".") == 1:
        given["from"], given["to"] = name.split(".")
    return parse.link(given, name)


def merged(first: Declaration | None, second: Declaration) -> Declaration:
    """Return one declaration with the environments and links of *first* and *second*, and the settings of *second*.

    :raises SpecError: the two declarations conflict.
    """
    from msgspec.structs import replace

    if first is None:
        return second
    both: Declaration = replace(
        second, environments={**first.environments, **second.environments}, links=(*first.links, *second.links)
    )
    problems = checks.clashes(
        both, "netspace", known={end for link in both.links for end in (link.source, link.target)}
    )
    if problems:
        raise SpecError(problems)
    return both


def _with(pillar: Mapping[str, Any], **parts: Any) -> Declaration:
    """Return a declaration with the settings of ``pillar:netspace``.

    :param parts: the declaration's other fields, such as ``environments``.
    """
    from msgspec.structs import replace

    section = pillar.get("netspace") or {}
    if not isinstance(section, Mapping):
        parse.declaration(section)  # raises the error
    settings = {key: section[key] for key in _SETTINGS if key in section}
    declared: Declaration = replace(parse.declaration(settings), **parts)
    return declared
