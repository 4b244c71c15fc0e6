"""Observation of environments. Reads, and never writes.

The records tell what was applied. Mounts, configurations, files and services are read once for all environments.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from netspace import files
from netspace.environment import claims, images
from netspace.environment import record as records
from netspace.environment import services as environment_services
from netspace.environment.claims import Claims
from netspace.environment.container import apparmor, cgroups, oci_config, oci_runtime, unikernel
from netspace.environment.health import record as verdict
from netspace.environment.health.record import HealthVerdict
from netspace.environment.images import Store
from netspace.environment.record import Record
from netspace.environment.storage import disks, init, injected_files, mounts, rootfs, volumes
from netspace.environment.storage.disks import Disk
from netspace.errors import MissingError
from netspace.index import Index
from netspace.known import also, without
from netspace.layout import Layout, below
from netspace.spec import spawns
from netspace.spec.types import Environment
from netspace.supervision import restart_policy
from netspace.supervision.cgroup import booted, payload_cgroup
from netspace.supervision.service import Status, Supervisor

# The most environments whose mounts are asked for one by one: more are found faster by one list of all.
_FEW = 16
AS_DECLARED = ", as it is declared (state: stopped)"


class ObservedEnvironment(msgspec.Struct, frozen=True):
    """Observed state of an environment.

    :param status: the status of its service; None if it has no service.
    :param assembled: whether its root is mounted and its configuration is as recorded.
    :param files: SHA-256 of each file in ``/run/netspace``; None if the files are damaged.
    :param namespace: whether it runs in the network namespace with its name, or doesn't run.
    :param halted: whether netspace stopped it and has not started it since.
    :param differing: the limits of the running environment that differ from its record.
    :param disks: its own file systems that are mounted, by key.
    :param service: whether its service is defined as its record says; True without a service.
    :param verdict: the health of the running process; None if it has no check, or no verdict yet.
    :param begun: False if the runtime reported that the last start of the program failed.
    :param problem: why it doesn't run or is unhealthy, if the reason is known; empty if it is well.
    :param unconfined: how the AppArmor profile differs from the recorded one; empty if it doesn't differ.
    """

    record: Record
    status: Status | None
    assembled: bool
    files: Mapping[str, str] | None
    namespace: bool = True
    halted: bool = False
    differing: tuple[str, ...] = ()
    disks: Mapping[str, Disk] = msgspec.field(default_factory=dict)
    service: bool = True
    verdict: HealthVerdict | None = None
    begun: bool = True
    problem: str = ""
    unconfined: str = ""


class Observed(msgspec.Struct, frozen=True, dict=True):
    """Observation of environments, and of their images' sources.

    :param environments: the environments for which a step may be planned.
    :param sources: image sources, by their text in the declaration.
    :param unkept: the limits that no cgroup controller on this host can enforce.
    :param unbounded: why file systems can't have a declared size on this host; empty if they can.
    :param grows: whether a file system with a declared size can be made larger while it is in use.
    :param budget: bytes that all file systems with a declared size can hold together; None if unknown, or if there are
        none.
    :param idle: true if the state folder is in memory or on a network, so that ``limits:io`` has no effect on layers.
    :param unrecorded: names of environments that have a layer but no record.
    :param mounted: mounts by their target.
    :param updating: names of environments that have a second instance.
    :param now: seconds since the epoch.
    :param unwatched: why the service that watches health is not in its required state; empty if it is.
    :param missing: images that no recorded environment uses and that can't be built, each with the reason.
    :param initless: why environments can't have an init on this host; empty if they can.
    :param others: the claims of all other environments.
    :param confining: the state of AppArmor on this host.
    :param programless: environments whose image lacks their program, each with the error.
    """

    environments: Mapping[str, ObservedEnvironment]
    sources: Mapping[str, images.Seen]
    revision: str
    unkept: tuple[str, ...] = ()
    unbounded: str = ""
    grows: bool = True
    budget: int | None = None
    idle: bool = False
    unrecorded: frozenset[str] = frozenset()
    mounted: Mapping[str, mounts.Mount] = msgspec.field(default_factory=dict)
    unwatched: str = ""
    now: float = 0.0
    updating: frozenset[str] = frozenset()
    missing: Mapping[str, str] = msgspec.field(default_factory=dict)
    initless: str = ""
    others: Mapping[str, Claims] = msgspec.field(default_factory=dict)
    confining: apparmor.State = apparmor.State()
    programless: Mapping[str, str] = msgspec.field(default_factory=dict)

    @functools.cached_property
    def claims(self) -> Mapping[str, Claims]:
        """The claims of every environment on this host, by name."""
        return also(self.others, {name: claims.of(seen.record) for name, seen in self.environments.items()})


def observe(
    layout: Layout,
    supervisor: Supervisor,
    store: Store,
    index: Index[Claims],
    controllers: Collection[str],
    devices: Callable[[Environment], Collection[cgroups.Device]],
    about: Collection[str] | None = None,
    wanted: Collection[str] = (),
    *,
    sized: bool = True,
    version: str,
) -> Observed:
    """Observe everything once: records, services, mounts, files, limits, image sources. Changes nothing.

    :param index: the index of all environments' claims.
    :param controllers: the cgroup controllers that can enforce limits here.
    :param devices: returns the disks with an environment's files.
    :param about: the environments for which a step may be planned; None: all. Of other environments, only the claims
        are read.
    :param wanted: images that may have to be built. :attr:`Observed.missing` gets those of them that can't be built.
    :param sized: whether a desired environment has file systems with a declared size.
    :param version: digest of the copy of netspace's library that the health service should run.
    """
    everybody = index.read(sealed=about is not None)
    near = records.some(layout, everybody if about is None else {name for name in about if name in everybody})
    known = near | records.some(
        layout, {other for record in near.values() for other in record.spec.after} - near.keys()
    )
    asked = None if about is None else {environment_services.HEALTH, *map(oci_runtime.service_name, known)}
    statuses = supervisor.observe(asked) if everybody else {}
    mounted: Mapping[str, mounts.Mount] = mounts.table() if about is None or len(about) > _FEW else mounts.Single()
    hierarchies = cgroups.Hierarchies(mounted, controllers)
    found = {}
    kinds = everybody.examples().values()
    probed = any(its.watched for its in kinds)
    services = [environment_services.health(layout, version)] if probed else []
    for name, record in near.items():
        with contextlib.suppress(MissingError):  # without its runtime it has no service; the plan says so
            services.append(
                environment_services.service(layout, name, record.spec, record.runtime, mounted, controllers)
            )
    redefined = supervisor.differing(services)
    confining, loose = apparmor.look(layout), _loose(near, statuses)
    revision = oci_config.revision(frozenset(controllers))
    for name, record in near.items():
        status = statuses.get(oci_runtime.service_name(name))
        own = own_disks(layout, name, record, mounted)
        found[name] = ObservedEnvironment(
            record,
            status,
            assembled(layout, name, record, mounted, own, revision),
            injected_files.observe(layout, name),
            _in_namespace(layout, name, status),
            oci_runtime.halt_mark(layout, name).exists(),
            _differing(layout, name, record, status, hierarchies, devices),
            own,
            oci_runtime.service_name(name) not in redefined,
            current(layout, name, record, status),
            not (_down(status) and oci_runtime.failure(layout, name)),
            problem(layout, name, known, statuses),
            _unconfined(record, name in loose, confining),
        )
    images_of = {unikernel.source(record.spec, record.runtime) for record in near.values()}
    images_of |= {record.failed.source for record in near.values() if record.failed is not None}
    sources = {image: store.seen(image) for image in sorted(images_of)}
    missing = {image: why for image in sorted({*wanted} - images_of) if (why := store.problem(image))}
    unwatched = environment_services.unwatched(watching(statuses), redefined) if probed else ""
    unkept = tuple(key for key, needed in cgroups.CONTROLLERS.items() if needed not in controllers)
    return Observed(
        found,
        sources,
        revision,
        unkept,
        disks.lacking(),
        disks.grows(),
        disks.budget(layout) if sized or any(its.promised for its in kinds) else None,
        not devices(Environment(image="")),
        frozenset(name for name in rootfs.layers(layout, about) if name not in everybody),
        mounted,
        unwatched,
        time.time(),
        frozenset(records.updating(layout)),
        missing,
        init.problem(),
        without(everybody, near),
        confining,
    )


def assembled(
    layout: Layout,
    name: str,
    record: Record,
    mounted: Mapping[str, mounts.Mount],
    own: Mapping[str, Disk],
    revision: str,
) -> bool:
    """Return whether the environment's root is mounted and its configuration is as recorded.

    :param own: the result of :func:`own_disks`.
    """
    if str(below(layout.bundle(name), "rootfs")) not in mounted:
        return False
    # An earlier version mounted no file system for the handed-out files.
    if str(layout.inside(name)) not in mounted and record.revision == revision:
        return False
    if "idmap" in record.runtime.jail.lacks:
        places = (volumes.shown(layout, name, index) for index in range(len(record.spec.volumes)))
        if not all(str(place) in mounted for place in places):
            return False
    for place in disks.places(layout, name, record.spec, record.image.digest):
        there = own.get(place.key)
        # A file system that is too small is grown in place, if this host can do that.
        if there is None or there.size > place.size or (there.size < place.size and not disks.grows()):
            return False
    try:
        written = files.read(oci_runtime.configuration(layout, name, record.runtime))
    except OSError:
        return False
    users = str(layout.users(name))
    if users not in mounted and os.fsencode(users) in written:  # an older version made no such mount
        return False
    return hashlib.sha256(written).hexdigest() == record.config


def own_disks(layout: Layout, name: str, record: Record, mounted: Mapping[str, mounts.Mount]) -> dict[str, Disk]:
    """Return the mounted file systems that belong to the environment (its layer and sized volumes), by key."""
    found = {
        place.key: disks.observe(place, mounted)
        for place in disks.places(layout, name, record.spec, record.image.digest)
    }
    return {key: there for key, there in found.items() if there is not None}


def _differing(
    layout: Layout,
    name: str,
    record: Record,
    status: Status | None,
    hierarchies: cgroups.Hierarchies,
    devices: Callable[[Environment], Collection[cgroups.Device]],
) -> tuple[str, ...]:
    if status is None or status.state != "running" or record.runtime.outside:
        return ()
    own, lacks = payload_cgroup(layout, oci_runtime.service_name(name)), record.runtime.jail.lacks
    group = cgroups.Group(own, hierarchies, unit=booted(), lacks=lacks)
    return group.differing(record.spec.limits, devices(record.spec))


def _loose(known: Mapping[str, Record], statuses: Mapping[str, Status]) -> set[str]:
    """Return the names of the environments whose program isn't under its AppArmor profile."""
    programs = {}
    for name, record in known.items():
        status = statuses.get(oci_runtime.service_name(name))
        if record.confined and status is not None and status.state == "running" and status.pid:
            programs[name] = (record.confined, status.pid)
    return apparmor.loose(programs)


def _unconfined(record: Record, loose: bool, confining: apparmor.State) -> str:
    if not record.confined or confining.loaded is None:
        return ""
    if loose:
        return "its program is no longer under its AppArmor profile"
    return "" if record.confined in confining.loaded else "its AppArmor profile is not loaded"


def _in_namespace(layout: Layout, name: str, status: Status | None) -> bool:
    if status is None or status.state != "running" or not status.pid:
        return True
    try:
        return os.path.samestat(os.stat(f"/proc/{status.pid}/ns/net"), os.stat(layout.netns(name)))
    except FileNotFoundError:
        # The process just ended (then its status will tell), or the namespace is gone.
        return not os.path.exists(f"/proc/{status.pid}")


def current(layout: Layout, name: str, record: Record, status: Status | None) -> HealthVerdict | None:
    """Return the health verdict on the running process; None if there is no check or no verdict yet."""
    if record.spec.health is None or status is None or not status.pid:
        return None
    found = verdict.read(layout, name)
    return found if found is not None and found.pid == status.pid else None


def is_up(record: Record, status: Status | None, known: HealthVerdict | None) -> bool:
    """Return whether an environment is healthy or, without a health check, runs."""
    if status is None or status.state != "running":
        return False
    return record.spec.health is None or (known is not None and known.judgement.state == "healthy")


def _down(status: Status | None) -> bool:
    """Return whether a service was started but does not run now."""
    return status is not None and status.state in ("starting", "failed")


def problem(layout: Layout, name: str, known: Mapping[str, Record], statuses: Mapping[str, Status]) -> str:
    """Return why an environment doesn't run or is unhealthy, if known; empty if it is well or was stopped.

    :param statuses: the status of each service, by its name; includes the environments in ``after``.
    """
    record, status = known[name], statuses.get(oci_runtime.service_name(name), Status("stopped"))
    if status.state == "stopped":
        return ""
    judged = verdict.read(layout, name)
    said = f": {judged.judgement.detail}" if judged is not None and judged.judgement.detail else ""
    if status.state == "running":
        if record.spec.health is not None and not watching(statuses):
            return "the service that watches health does not run, so its health is not known; apply again"
        now = current(layout, name, record, status)
        return f"its health check fails{said}" if now is not None and now.judgement.state == "unhealthy" else ""
    if status.state == "frozen":
        return f"its process {status.pid} is stopped by a signal; kill -CONT {status.pid}, or apply again"
    if complaint := oci_runtime.failure(layout, name):
        return f"can't be started: {complaint}"
    if record.spec.health is not None and verdict.condemned(layout, name).exists():
        return f"it was ended, since its health check failed{said}"
    if status.exit:
        return f"it ended ({status.exit})"
    return awaited(layout, name, known, statuses) if status.state == "starting" else ""


def watching(statuses: Mapping[str, Status]) -> bool:
    """Return whether the health-watching service runs or is starting."""
    watch = statuses.get(environment_services.HEALTH)
    return watch is not None and watch.state in ("running", "starting")


def awaited(layout: Layout, name: str, known: Mapping[str, Record], statuses: Mapping[str, Status]) -> str:
    """Return the environments for which *name* waits, as a text for the operator; empty if all of them are up."""
    missing = []
    for other in known[name].spec.after:
        record, its = known.get(other), statuses.get(oci_runtime.service_name(other), Status("stopped"))
        if record is None:
            missing.append(f"{other}, which does not exist")
            continue
        judged = current(layout, other, record, its)
        if not is_up(record, its, judged):
            state = judged.judgement.state if judged is not None and its.state == "running" else its.state
            how = "not healthy yet" if state == "running" else state
            missing.append(f"{other}, which is {how}{AS_DECLARED if declared_stopped(record, its) else ''}")
    return f"waits for {', '.join(missing)}; it is started as soon as that is healthy" if missing else ""


def declared_stopped(record: Record, status: Status) -> bool:
    """Return whether an environment is stopped and its declaration says ``state: stopped``."""
    return status.state == "stopped" and record.spec.state == "stopped"


class Around(msgspec.Struct, frozen=True):
    """Observations for the table of environments, made once for all rows.

    :param known: every readable record.
    :param statuses: the status of each service, by its name.
    :param updating: the environments that have a second instance now.
    :param supervised: whether the supervisor runs, which restarts services that end.
    """

    known: Mapping[str, Record]
    statuses: Mapping[str, Status]
    updating: Collection[str]
    supervised: bool


def around(layout: Layout, supervisor: Supervisor, known: Mapping[str, Record], about: Collection[str]) -> Around:
    """Return the observations that all rows of the table share.

    :param about: the environments that will be described.
    """
    wanted = {*about, *(other for name in about if name in known for other in known[name].spec.after)}
    statuses = (
        supervisor.observe({environment_services.HEALTH, *map(oci_runtime.service_name, wanted)}) if wanted else {}
    )
    return Around(known, statuses, records.updating(layout), supervisor.attended())


def describe(layout: Layout, name: str, around: Around, damage: str = "") -> dict[str, Any]:
    """Return one environment's row of the table; see ``Environments.list``.

    :param damage: why the environment's record can't be read. Then the row has only the values of its service.
    """
    status = around.statuses.get(oci_runtime.service_name(name), Status("stopped"))
    row: dict[str, Any] = {
        "state": status.state,
        "pid": status.pid,
        "since": status.since,
        "restarts": status.restarts,
        "exit": status.exit,
        "oom_kills": status.oom_kills,
        "image": "",
        "digest": "",
        "wanted": "",
        "declared_stopped": False,
        "runtime": "",
        "health": "",
        "flapping": restart_policy.flapping(status.state, status.restarts, status.since, time.time()),
        "updating": name in around.updating,
        "supervised": around.supervised,
        "problem": damage,
    }
    if damage:
        return row
    record = around.known[name]
    if parent := spawns.parent_of(name, lambda one: around.known[one].spec if one in around.known else None):
        row["parent"] = parent
    if record.spec.tenant is not None:
        row["tenant"] = record.spec.tenant
    known = current(layout, name, record, status)
    health = ""
    if record.spec.health is not None and status.state in ("running", "starting"):
        health = known.judgement.state if known is not None else "starting"
        if verdict.condemned(layout, name).exists():  # its failed check ended it, and it has not been healthy since
            health = "unhealthy"
        elif not watching(around.statuses):
            health = "unknown"
    return row | {
        "image": unikernel.source(record.spec, record.runtime),
        "digest": f"sha256:{record.image.digest}",
        "wanted": record.state,
        "declared_stopped": record.spec.state == "stopped",
        "runtime": record.runtime.name,
        "health": health,
        "problem": problem(layout, name, around.known, around.statuses),
    }
