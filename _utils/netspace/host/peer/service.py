"""The peer as a service of the host. It runs while some environment may send requests to the host."""

from __future__ import annotations

from netspace import files, library_copy
from netspace.errors import raise_any
from netspace.host.peer import health, told
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link.forwarder import process as forwarder
from netspace.supervision.service import Service, Supervisor

NAME = host_peer.SERVICE
KEEPER = host_peer.KEEPER_SERVICE
LIMITS = {"memory": 256 * 1024 * 1024, "cpus": 0.5, "pids": 8}
KEEPER_LIMITS = {"memory": 512 * 1024 * 1024, "cpus": 1.0}
"""Limits that systemd sets, so that an environment that asks without end takes no more of the host."""


def service(layout: Layout, version: str) -> Service:
    """Return the definition of the service that answers the environments.

    :param version: the digest of the library's copy that the service runs.
    """
    return Service(
        name=NAME,
        command=library_copy.command(layout, "peer"),
        description=f"{layout.instance}: answers to the environments' requests to their host",
        variables=_variables(version),
        stop_timeout=5.0,
        limits=LIMITS,
        # After a reboot they are written last, once the forwarder's configuration is there.
        until=(host_peer.folder(layout) / told.FILE,),
    )


def keeper(layout: Layout, version: str) -> Service:
    """Return the definition of the service that starts and ends children for the peer (``netspace.host.keeper``).

    :param version: the digest of the library's copy that the service runs.
    """
    return Service(
        name=KEEPER,
        command=library_copy.command(layout, "keeper"),
        description=f"{layout.instance}: children of environments, which these ask their host for",
        variables=_variables(version),
        stop_timeout=20.0,
        until=(host_peer.folder(layout) / told.FILE,),
        limits=KEEPER_LIMITS,
        delegate=True,  # it starts environments as an apply does, so systemd can't confine it
    )


def _variables(version: str) -> dict[str, str]:
    return {
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "1",
        "NETSPACE_LIBRARY": version,  # a new library restarts the service
    }


def lacking(supervisor: Supervisor, made: Service, wanted: bool) -> tuple[str, dict[str, str | None]] | None:
    """Return the needed action and the service's change of state; None if no action is needed.

    The action is ``start``, ``restart`` or ``remove``.

    :param made: the definition of the service.
    :param wanted: whether the service should run.
    """
    status = supervisor.observe([made.name]).get(made.name)
    old = None if status is None else status.state
    if not wanted:
        return None if old is None else ("remove", {"old": old, "new": None})
    if supervisor.differing([made]) and old is not None:
        return "restart", {"old": old, "new": "running"}
    return None if old in ("running", "starting") else ("start", {"old": old, "new": "running"})


def forget(layout: Layout) -> None:
    """Remove the peer's folder, and the peer's access to the marks of health.

    The folder stays while the forwarder (haproxy) listens in it, because haproxy could not start again without the
    folder.
    """
    health.withdraw(layout)
    if str(host_peer.socket_path(layout)) not in forwarder.current(layout):
        host_peer.remove(layout)


def apply(layout: Layout, supervisor: Supervisor, made: Service, action: str) -> None:
    """Take the action that :func:`lacking` returned.

    :raises NetspaceError: the supervisor can't do it.
    """
    if action == "remove":
        raise_any(supervisor.remove([made.name]))
        if made.name == NAME:
            forget(layout)
        else:
            files.remove(host_peer.folder(layout) / host_peer.KEEPER)
        return
    if action == "restart":
        raise_any(supervisor.stop([made.name]))
    supervisor.define([made])
    raise_any(supervisor.start([made.name]))
