"""Names that belong to tenants. No name belongs to two tenants. Pure.

The operator gives each tenant whole names (``web``) and beginnings of names (``acme-*``), by default ``<tenant>-*``. So
a tenant can't take the name of another party's environment, not even one that doesn't exist yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from netspace.errors import Problem
from netspace.patterns import pattern
from netspace.spec.types import NAME, Declaration, Tenant

LONGEST = 24
"""The most characters of a tenant's name, so that names of environments can begin with it."""
_GRANT = pattern(r"[a-z0-9][a-z0-9_-]{0,46}\*?")


def granted(name: str, tenant: Tenant) -> tuple[str, ...]:
    """Return the names and beginnings of names that belong to a tenant."""
    return tenant.names or (f"{name}-*",)


def fits(grant: str, name: str) -> bool:
    """Return whether a grant covers a name.

    A grant is a name, or the beginning of longer names with a ``*`` at its end.
    """
    if grant.endswith("*"):
        return name.startswith(grant[:-1]) and len(name) >= len(grant)
    return name == grant


def owns(name: str, tenant: Tenant, environment: str) -> bool:
    """Return whether the name of an environment belongs to the tenant *name*."""
    return any(fits(grant, environment) for grant in granted(name, tenant))


def owner(tenants: Mapping[str, Tenant], environment: str) -> str:
    """Return the tenant to which the name of an environment belongs; empty if it belongs to none."""
    return next((name for name, tenant in tenants.items() if owns(name, tenant, environment)), "")


def wrong(tenants: Mapping[str, Tenant], path: str) -> list[Problem]:
    """Return the problems of names and of beginnings: malformed ones, and those that two tenants would share.

    :param path: the path of the tenants in the declaration.
    """
    problems: list[Problem] = []
    seen: list[tuple[str, str]] = []
    for name, tenant in tenants.items():
        if len(name) > LONGEST:
            problems.append(Problem(f"{path}:{name}", f"longer than {LONGEST} characters; give a shorter name"))
        for index, grant in enumerate(granted(name, tenant)):
            where = f"{path}:{name}:names:{index}" if tenant.names else f"{path}:{name}:names"
            if not _GRANT.fullmatch(grant) or (not grant.endswith("*") and not NAME.fullmatch(grant)):
                text = f"{grant!r:.60}: expected a name, or the beginning of names with * after it, such as acme-*"
                problems.append(Problem(where, text))
                continue
            for other, held in seen:
                if other != name and shared(grant, held):
                    text = f"{grant} and {other}'s {held} have names in common; give each tenant its own"
                    problems.append(Problem(where, text))
                    break
            seen.append((name, grant))
    return problems


def shared(one: str, other: str) -> bool:
    """Return whether some name is covered by both grants.

    :param one: a grant: a name, or a pattern with a ``*`` at its end.
    """
    first, second = one.rstrip("*"), other.rstrip("*")
    if one.endswith("*") and other.endswith("*"):
        return first.startswith(second) or second.startswith(first)
    return fits(one, other) if one.endswith("*") else fits(other, one)


def misplaced(declared: Declaration, path: str) -> list[Problem]:
    """Return problems of environments: a name that doesn't belong to the environment's tenant, or an undeclared tenant.

    :param path: the path of the declaration.
    """
    problems = []
    for name, spec in declared.environments.items():
        where = f"{path}:environments:{name}"
        holder = owner(declared.tenants, name)
        if spec.tenant is not None and spec.tenant not in declared.tenants:
            known = ", ".join(sorted(declared.tenants)) or "none"
            problems.append(Problem(f"{where}:tenant", f"there is no tenant {spec.tenant!r:.60}; declared: {known}"))
        elif holder and spec.tenant is None:
            text = f"this name belongs to the tenant {holder}; give another name, or write tenant: {holder}"
            problems.append(Problem(where, text))
        elif spec.tenant is not None and holder != spec.tenant:
            tenant = declared.tenants[spec.tenant]
            problems.append(Problem(where, foreign(name, spec.tenant, tenant)))
        elif spec.formerly is not None and (whose := owner(declared.tenants, spec.formerly)) != (spec.tenant or ""):
            text = (
                f"{spec.formerly!r:.60} is a name of {whose or 'no tenant'}, and {name} of {spec.tenant or 'no tenant'}"
            )
            problems.append(Problem(f"{where}:formerly", f"{text}: mail stays within a tenant; leave it out"))
    return problems


def foreign(name: str, whose: str, tenant: Tenant) -> str:
    """Return the message about an environment whose name isn't one of its tenant's.

    :param whose: the tenant's name.
    """
    return f"{name!r:.60} is not a name of the tenant {whose}, which has {', '.join(granted(whose, tenant))}"


def of(declared: Declaration, tenant: str) -> list[str]:
    """Return the environments of a tenant, including the places of children."""
    return [name for name, spec in declared.environments.items() if spec.tenant == tenant]


def known(tenants: Mapping[str, Tenant], path: str) -> Iterable[Problem]:
    """Yield a problem for each tenant in ``reaches`` that isn't declared."""
    for name, tenant in tenants.items():
        for index, other in enumerate(tenant.reaches):
            if other not in tenants or other == name:
                text = f"{other!r:.60} is not another tenant; declared: {_others(tenants, name)}"
                yield Problem(f"{path}:{name}:reaches:{index}", text)


def _others(tenants: Collection[str], name: str) -> str:
    return ", ".join(sorted(set(tenants) - {name})) or "none"
