"""Rolling updates: a second instance must become healthy before the running instance is replaced.

The second instance has its own name (``Layout.beside``), root, cgroup, service and files. It shares the environment's
network namespace, ids and account, and has no record. The second instance runs while the old program is stopped and the
new program is started, until the new program is healthy. A note on disk exists from before the first part of the second
instance is made until after the last part is gone. By this note, the next run (or boot) removes what a killed run left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from netspace import files
from netspace.environment import record as records
from netspace.environment import runs
from netspace.environment.builder import Builder, each
from netspace.environment.container import oci_runtime
from netspace.environment.health import state
from netspace.environment.record import Record
from netspace.environment.storage import mounts, rootfs
from netspace.errors import NetspaceError
from netspace.layout import Layout, below
from netspace.spec.types import Environment
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.service import Status, Supervisor

Files = Mapping[str, bytes]


def hindrance(new: Environment) -> str:
    """Return why this environment can't have a second instance; empty if it can. Pure."""
    if not new.update.rolling:
        return "update:rolling is false"
    if new.health is None or not new.health.exec:
        return "only a health check with exec can check each of two instances"
    if new.kernel is not None:
        return "two kernels can't share an interface and a mailbox"
    if new.interface is not None and not new.interface.NONE:
        return "two instances would share the addresses of its interface"
    if not new.read_only:
        return "two instances would share its writable layer"
    if any(volume.source is None or not volume.read_only for volume in new.volumes):
        return "two instances would share its volumes"
    return ""


def _note(layout: Layout, name: str) -> Path:
    return below(layout.records(records.BESIDE), f"{name}.json")


def try_beside(
    making: Builder, supervisor: Supervisor, wanted: Mapping[str, Record], handed: Mapping[str, Files]
) -> tuple[dict[str, str], dict[str, str]]:
    """Start a second instance of each environment; remove it if it isn't healthy in time.

    :param handed: the files under ``/run/netspace``, for each environment.
    :return: two mappings from names to reasons: of instances that started but did not become healthy, and of instances
        that could not be started.
    :raises NetspaceError: when the supervisor can't be reached; the notes stay, and the next run cleans up.
    """
    layout = making.layout
    errors = erase(layout, supervisor, wanted)
    mounted = mounts.table()
    unmounted = making.mount_images({record.image.digest for record in wanted.values()}, mounted)

    def make(name: str) -> None:
        record, place = wanted[name], layout.beside(name)
        files.write_json(_note(layout, name), {"digest": record.image.digest})
        if error := unmounted.get(record.image.digest):
            raise NetspaceError(error)
        making.assemble(place, record)
        making.hand_out(place, record, handed[name])

    errors |= each(wanted.keys() - errors.keys(), make)
    failed: dict[str, str] = {}
    made = {name: oci_runtime.service_name(layout.beside(name)) for name in wanted if name not in errors}
    if made:
        mounted = mounts.table()
        supervisor.define(
            [
                making.service(layout.beside(name), _once(wanted[name].spec), wanted[name].runtime, mounted)
                for name in made
            ]
        )
        runs.starting(layout, {layout.beside(name): wanted[name] for name in made})
        refused = supervisor.start(list(made.values()))

        def prove(name: str) -> None:
            complaint = oci_runtime.failure(layout, layout.beside(name))
            said = f"it can't be started: {complaint}" if complaint else refused.get(made[name], "")
            if reason := _proved(layout, supervisor, name, wanted[name], said):
                raise NetspaceError(reason)

        failed = each(made, prove)
    erase(layout, supervisor, [*failed, *errors], keep_output=True)
    return failed, errors


def _once(spec: Environment) -> Environment:
    """Return *spec* for a second instance: with ``restart: never``, without ``after`` and health check."""
    return msgspec.structs.replace(spec, restart="never", after=(), health=None)


def _proved(layout: Layout, supervisor: Supervisor, name: str, record: Record, refused: str) -> str:
    """Probe the second instance until it is healthy; return an empty text, or why it isn't healthy in time."""
    from netspace.environment.health import probes

    place, service = layout.beside(name), oci_runtime.service_name(layout.beside(name))
    health, deadline = record.spec.health, record.spec.update.deadline
    assert health is not None
    until, late, said = time.monotonic() + deadline, False, ""
    while True:
        status = supervisor.observe([service]).get(service, Status("stopped"))
        if status.state in ("stopped", "failed"):
            return refused or f"it ended ({status.exit or 'no reason known'})"
        if late:
            return f"it was not healthy within {deadline:g} s{said}"
        passed, detail = probes.inside(layout, place, record, health)
        if passed:
            return ""
        said = f": {detail}" if detail else said
        late = time.monotonic() >= until
        if not late:
            time.sleep(max(0.0, min(health.interval, state.SOON, until - time.monotonic())))


def erase(layout: Layout, supervisor: Supervisor, names: Iterable[str], *, keep_output: bool = False) -> dict[str, str]:
    """Stop and remove the second instances of these environments; return the errors, by name.

    :param keep_output: whether to keep their output for the operator, on a host without a journal.
    """
    todo = sorted(records.updating(layout) & set(names))
    if not todo:
        return {}
    places = {oci_runtime.service_name(layout.beside(name)): name for name in todo}
    try:
        errors = {places[service]: error for service, error in supervisor.remove(list(places)).items()}
        runs.ended(layout, {layout.beside(name) for name in todo if name not in errors})
    except (NetspaceError, OSError) as err:
        errors = dict.fromkeys(todo, str(err))
    mounted = mounts.table()

    def forget(name: str) -> None:
        place = layout.beside(name)
        oci_runtime.delete(layout, place, mounted)
        rootfs.erase(layout, place)
        oci_runtime.remove_cgroups(layout, payload_cgroup(layout, oci_runtime.service_name(place)), mounted)
        if not keep_output:
            oci_runtime.remove_output(layout, place)
        files.remove(_note(layout, name))

    errors |= each([name for name in todo if name not in errors], forget)
    with contextlib.suppress(OSError):  # the folder has another run's note, or was never made
        layout.records(records.BESIDE).rmdir()
    return {name: f"its second instance can't be removed: {error}" for name, error in errors.items()}
