"""Service that watches the health of environments: started while any of them needs it."""

from __future__ import annotations

from netspace import library_copy
from netspace.environment import services as environment_services
from netspace.environment.health import record as verdict
from netspace.environment.update import rollout
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision.service import Supervisor


def ensure(layout: Layout, supervisor: Supervisor, needed: bool) -> None:
    """Start the health service if it is *needed*; else remove it with its verdicts.

    A running service is restarted if its definition has changed.

    :raises NetspaceError: the service does not run, or does not end.
    """
    there = supervisor.observe([environment_services.HEALTH]).get(environment_services.HEALTH)
    if needed:
        own = environment_services.health(layout, library_copy.installed(layout))
        changed = supervisor.differing([own])
        supervisor.define([own])
        if changed and there is not None:
            supervisor.stop([own.name])
        if errors := supervisor.start([own.name]):
            raise NetspaceError(f"the service that watches health does not run: {errors[own.name]}")
        rollout.watched(layout, supervisor)  # it may have been killed, and be starting again
    else:
        if there is not None and (errors := supervisor.remove([environment_services.HEALTH])):
            raise NetspaceError(f"the service that watches health does not end: {errors[environment_services.HEALTH]}")
        verdict.clear_all(layout)
