"""Services that the supervisor runs for environments: one for each environment, and one that watches their health."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from netspace import library_copy
from netspace.environment.container import cgroups, domain, oci_runtime
from netspace.environment.health import record
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import mounts
from netspace.layout import Layout
from netspace.spec.types import Environment
from netspace.supervision.service import Service

_AT_ONCE = 0.1  # stop timeout (seconds) of a tender that no signal stops; 0 would mean no deadline


HEALTH = "health"  # the service that watches environments' health


def service(
    layout: Layout,
    name: str,
    spec: Environment,
    runtime: Runtime,
    mounted: Mapping[str, mounts.Mount],
    controllers: Collection[str],
) -> Service:
    """Return the definition of the environment's service.

    :param controllers: the cgroup controllers that the host has; limits without a controller are left out.
    :raises MissingError: when the runtime is not installed.
    """
    limits: dict[str, float] = {
        "memory": int(spec.limits.memory),
        "cpus": spec.limits.cpus,
        "pids": spec.limits.pids,
    }
    jail = runtime.jail
    own = oci_runtime.container(layout, name, jail)
    pid: Path | None = oci_runtime.pid_file(layout, name)
    if runtime.outside:
        command, cleanup = domain.command(layout, name, spec, runtime), domain.cleanup(layout, name, runtime)
        pid, limits = None, domain.limits(spec)
    else:
        errors = ("--log", str(oci_runtime.log(layout, name)))
        command = oci_runtime.call(
            *(layout, jail, mounted, *errors, "run", "--detach"),
            *("--bundle", str(layout.bundle(name)), "--pid-file", str(pid), own),
        )
        cleanup = oci_runtime.cleanup(layout, name, jail, mounted)
    return Service(
        name=oci_runtime.service_name(name),
        description=f"{layout.instance} environment {name}",
        command=command,
        variables=oci_runtime.VARIABLES,
        pid_file=pid,
        cleanup=cleanup,
        restart="always" if spec.meant_to_stay else spec.restart,
        stop_timeout=spec.stop_timeout if getattr(runtime.module, "STOPS", True) else _AT_ONCE,
        after=(HEALTH,) if spec.after else (),
        until=tuple(record.up(layout, other) for other in spec.after),
        condemned=record.condemned(layout, name) if spec.health is not None else None,
        log=oci_runtime.output(layout, name),
        limits={key: value for key, value in limits.items() if cgroups.CONTROLLERS[key] in controllers},
        delegate=True,
        init=spec.init,
    )


def health(layout: Layout, version: str) -> Service:
    """Return the definition of the service that watches the health of all environments.

    :param version: digest of the copy of netspace's library that the service runs.
    """
    return Service(
        name=HEALTH,
        description=f"{layout.instance}: the health of environments",
        command=library_copy.command(layout, "health"),
        variables={
            **oci_runtime.VARIABLES,
            "NETSPACE_LIBRARY": version,
        },  # a new library restarts the service
        stop_timeout=5.0,
        delegate=True,  # it runs crun
    )


def unwatched(runs: bool, redefined: Collection[str]) -> str:
    """Return why an apply starts or restarts the service that watches health; empty if it doesn't.

    :param redefined: the services whose definition has changed.
    """
    if not runs:
        return "the service that watches its health does not run"
    if HEALTH in redefined:
        return "its health watch restarts: a new netspace or definition"  # Salt shows it after 22 columns
    return ""
