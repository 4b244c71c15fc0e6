"""Table of a host's tenants: their quotas, what each has declared, and their environments. Changes nothing."""

from __future__ import annotations

from typing import Any

from netspace.environment import claims
from netspace.environment.container.oci_runtime import service_name
from netspace.host.parts import Parts
from netspace.spec.tenancy import names, quota
from netspace.spec.types import Declaration, Quota


def told(host: Parts, declared: Declaration) -> dict[str, dict[str, Any]]:
    """Return a row for each declared tenant, as plain values, by the tenant's name.

    :param declared: the host's declaration.
    :raises NetspaceError: the records of environments can't be read.
    """
    applied = of_environments(host)
    statuses = host.supervisor.observe()
    found = {}
    for name, tenant in sorted(declared.tenants.items()):
        use, own = quota.used(declared, name), sorted(one for one, its in applied.items() if its == name)
        up = [one for one in own if (status := statuses.get(service_name(one))) and status.state == "running"]
        found[name] = {
            "quota": {
                key: {
                    "declared": quota.written(getattr(use, key)),
                    "most": quota.written(getattr(tenant.quota, key)),
                }
                for key in Quota.__struct_fields__
            },
            "environments": own,
            "running": len(up),
            "names": list(names.granted(name, tenant)),
            "reaches": list(tenant.reaches),
        }
    return found


def declared_of(declared: Declaration) -> dict[str, str]:
    """Return the tenant of each declared environment that has one."""
    return {name: spec.tenant for name, spec in declared.environments.items() if spec.tenant is not None}


def of_environments(host: Parts) -> dict[str, str]:
    """Return the tenant of each applied environment that has one."""
    return {name: its.tenant for name, its in claims.index(host.layout).read().items() if its.tenant}
