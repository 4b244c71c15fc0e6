"""Environments as a kind of thing: observe what is there, plan, apply.

What is asked is compared with the record of what was applied; what is there (mounts,
configuration, files, the service) with what the record says should be. Only a difference
makes a step, and the step names it. Interfaces, links and trust are not known here: the
namespace an environment joins stands already, and the files it is handed come as bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from netspace import files
from netspace.environment import handout, ids, images, mounts, oci, records, rootfs, runtime, volumes
from netspace.environment.images import Image, Store
from netspace.environment.records import Record, RunState
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.plan import Changes, Outcome, Plan, Refusal, Step
from netspace.spec import parse
from netspace.spec.check import within
from netspace.spec.types import Environment
from netspace.supervision import Service, Status, Supervisor, payload_cgroup
from netspace.supervision import controllers as host_controllers

KIND = "environment"

# Keys whose change needs no restart: what they say matters to the supervisor or the appraisal alone.
_LIVE = frozenset({"restart", "stop_timeout", "attestation"})
# A batch that was started is looked at once more after this many seconds.
_GRACE = 0.1
_THREADS = 8
_HIDDEN = "(not shown)"

T = TypeVar("T")
Outcomes = list[Outcome]


@dataclass(frozen=True)
class DesiredEnvironment:
    """What one environment shall be.

    :param spec: its ``attestation`` is the requirement in force, the host's own where it has none:
        it is recorded, for those who start it without the declaration.
    :param files: appear under ``/run/netspace`` inside; may hold secrets.
    :param files_summary: what to show in changes when the files differ; no secrets.
    :param state: ``running``; ``present``: there, and left running or stopped as it is;
        ``stopped``: there, and not running.
    """

    spec: Environment
    files: Mapping[str, bytes] = field(default_factory=dict)
    files_summary: Mapping[str, Any] = field(default_factory=dict)
    state: RunState = "running"


@dataclass(frozen=True)
class Seen:
    """One environment as it was found.

    :param status: of its service; None where none is defined.
    :param assembled: its root is mounted and its configuration is as recorded.
    :param files: sha256 of each file handed out; None where they are damaged.
    :param namespace: whether it runs in the network namespace that has its name.
    :param halted: it was stopped by us, and not started since.
    """

    record: Record
    status: Status | None
    assembled: bool
    files: Mapping[str, str] | None
    namespace: bool = True
    halted: bool = False


@dataclass(frozen=True)
class Observed:
    """All environments, and their images' sources (by the text in the declaration).

    :param unkept: the limits that nothing on this host can keep.
    """

    environments: Mapping[str, Seen]
    sources: Mapping[str, images.Seen]
    revision: str
    unkept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a step's ``apply`` has to do, decided by the plan."""

    want: DesiredEnvironment
    record: Record | None
    build: bool = False
    assemble: bool = False
    stop: bool = False
    start: bool = False


class Environments:
    """The environments of one host.

    :param supervisor: what keeps them running.
    """

    def __init__(self, layout: Layout, supervisor: Supervisor) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.store = Store(layout)

    @functools.cached_property
    def controllers(self) -> frozenset[str]:
        """The cgroup controllers that can keep an environment's limits here."""
        return host_controllers() & frozenset(oci.CONTROLLERS.values())

    # -- seeing ------------------------------------------------------------------

    def names(self) -> set[str]:
        """Every environment that exists, by the records."""
        return set(files.read_records(self.layout.records(records.KIND)))

    def recorded(self) -> dict[str, Record]:
        """Every environment's record: ``spec``, ``state`` and how it was made."""
        return records.read(self.layout)

    def observe(self) -> Observed:
        """Look at everything once: records, services, mounts, files, image sources. Changes nothing."""
        known = self.recorded()
        statuses = self.supervisor.observe() if known else {}
        mounted = mounts.table() if known else {}
        found = {}
        for name, record in known.items():
            status = statuses.get(runtime.service_name(name))
            found[name] = Seen(
                record,
                status,
                self._assembled(name, record, mounted),
                handout.observe(self.layout, name),
                self._in_namespace(name, status),
                runtime.halt_mark(self.layout, name).exists(),
            )
        sources = {image: self.store.seen(image) for image in sorted({record.spec.image for record in known.values()})}
        unkept = tuple(key for key, needed in oci.CONTROLLERS.items() if needed not in self.controllers)
        return Observed(found, sources, revision(self.controllers), unkept)

    def _assembled(self, name: str, record: Record, mounted: Collection[str]) -> bool:
        if not rootfs.is_assembled(self.layout, name, mounted):
            return False
        try:
            written = (self.layout.bundle(name) / "config.json").read_bytes()
        except OSError:
            return False
        return hashlib.sha256(written).hexdigest() == record.config

    def _in_namespace(self, name: str, status: Status | None) -> bool:
        if status is None or status.state != "running" or not status.pid:
            return True
        try:
            return os.path.samestat(os.stat(f"/proc/{status.pid}/ns/net"), os.stat(self.layout.netns(name)))
        except FileNotFoundError:
            # The process just ended (then its status will tell), or the namespace is gone.
            return not os.path.exists(f"/proc/{status.pid}")

    # -- planning ------------------------------------------------------------------

    @staticmethod
    def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Say what has to change: ``create``, ``restart``, ``change``, ``start``, ``stop``, ``update``, ``remove``.

        ``restart`` names exactly the keys that need it. ``change`` is the same for one that
        doesn't run, ``update`` for what is changed without a restart. A folder that belongs to
        another environment is refused, and then nothing of the one that asked for it changes.
        """
        steps = [Step(KIND, name, "remove") for name in sorted(remove) if name in observed.environments]
        notes = []
        if desired and observed.unkept:
            limits = ", ".join(observed.unkept)
            notes.append(f"environments run without these limits, since this host has no cgroup controller: {limits}")
        taken = _taken(desired, observed, remove)
        for name, want in desired.items():
            if name in taken:
                continue
            seen = observed.environments.get(name)
            if seen is None:
                run = want.state == "running"
                work = Work(want, None, build=True, assemble=True, start=run)
                steps.append(Step(KIND, name, "create", _created(want), data=work))
                continue
            source = observed.sources.get(want.spec.image, images.Seen())
            if source.error:
                notes.append(f"environment {name} keeps the image it has: {source.error}")
            step = _compare(name, want, seen, source, observed.revision)
            if step is not None:
                steps.append(step)
        return Plan(steps, [Refusal(KIND, name, message) for name, message in taken.items()], notes)

    # -- applying ------------------------------------------------------------------

    def apply(self, steps: Sequence[Step]) -> Outcomes:
        """Do the steps as one batch; what fails for one environment doesn't stop the others.

        Images are built first, then what has to be stopped is stopped, all roots are made,
        and everything is started together.
        """
        self.store.note_seen()
        batch = _Batch(self, steps)
        batch.remove()
        batch.build()
        batch.stop()
        batch.make()
        batch.define()
        batch.start()
        self.store.prune({record.image.digest for record in self.recorded().values()})
        return [Outcome(step, batch.errors.get(step.name, "")) for step in steps]

    def withhold(self, names: Collection[str]) -> dict[str, str]:
        """Have these neither run nor be started at boot, until an apply or an operator starts them.

        :return: what went wrong, by environment.
        """
        known = self.recorded()
        for name in names:
            records.write(self.layout, name, replace(known[name], state="stopped"))
        halt(self.layout, names)
        services = {runtime.service_name(name): name for name in names}
        errors = self.supervisor.stop(list(services)) if services else {}
        return {services[service]: error for service, error in errors.items()}

    def restore(self, without: Collection[str] = ()) -> dict[str, str]:
        """Rebuild what a reboot took (mounts, bundles, files) from the records, before the services start.

        :param without: those that are not rebuilt: without its bundle nothing can start one.
        :return: what went wrong, by environment.
        """
        known = {name: record for name, record in self.recorded().items() if name not in without}
        mounted = mounts.table()
        lost = {name: record for name, record in known.items() if not self._assembled(name, record, mounted)}
        errors = self._mount_images({record.image.digest for record in lost.values()}, mounted)

        def rebuild(name: str) -> None:
            record = lost[name]
            if error := errors.get(record.image.digest):
                raise NetspaceError(error)
            self.assemble(name, record)
            self.hand_out(name, record, handout.read(self.layout, name))

        return _each(lost, rebuild)

    def purge(self) -> None:
        """Remove what is left when no environment exists any more: images, mounts, empty cgroups.

        :raises NetspaceError: when there still are environments.
        """
        if names := self.names():
            raise NetspaceError(f"there still are environments: {', '.join(sorted(names))}")
        self.store.prune(())
        folder = self.layout.run / "environments"
        mounted = mounts.table()
        for target in mounted:
            if Path(target).is_relative_to(folder):
                mounts.unmount(Path(target))
        runtime.remove_cgroups(self.layout, f"/{self.layout.instance}", mounted)
        for each in (folder, runtime.state(self.layout), self.layout.images, self.layout.records(records.KIND)):
            shutil.rmtree(each, ignore_errors=True)

    def list(self) -> dict[str, Any]:
        """Per environment: ``state``, ``pid``, ``since``, ``restarts``, ``exit``, ``image``, ``digest``, ``wanted``."""
        known = self.recorded()
        statuses = self.supervisor.observe() if known else {}
        return {
            name: describe(record, statuses.get(runtime.service_name(name))) for name, record in sorted(known.items())
        }

    # -- the parts, for a batch and for a reboot ------------------------------------

    def render(self, name: str, spec: Environment, base: int, image: Image) -> bytes:
        """The bundle's ``config.json``."""
        return encode(
            oci.config(
                name,
                spec,
                layout=self.layout,
                base=base,
                cgroup=self.cgroup(name),
                controllers=self.controllers,
                defaults=image.defaults,
            )
        )

    def cgroup(self, name: str) -> str:
        return payload_cgroup(self.layout, runtime.service_name(name))

    def assemble(self, name: str, record: Record) -> None:
        """Mount the root and write the configuration; the image is mounted, nothing runs."""
        spec = record.spec
        for volume in spec.volumes:
            volumes.ensure(self.layout, name, volume, oci.user_of(spec, record.image.defaults))
        rootfs.dismantle(self.layout, name)
        image = self.store.mountpoint(record.image.digest)
        rootfs.assemble(self.layout, name, image, record.image.digest, record.base, volatile=spec.read_only)
        content = self.render(name, spec, record.base, record.image)
        files.write(self.layout.bundle(name) / "config.json", content)

    def hand_out(self, name: str, record: Record, handed: Mapping[str, bytes]) -> None:
        owner = record.base + oci.user_of(record.spec, record.image.defaults)
        handout.write(self.layout, name, handed, owner)

    def _mount_images(self, digests: Iterable[str], mounted: Collection[str]) -> dict[str, str]:
        return _each(set(digests), lambda digest: self.store.mount(digest, mounted))

    def service(self, name: str, spec: Environment, mounted: Mapping[str, mounts.Mount]) -> Service:
        return runtime.service(self.layout, name, spec, mounted, self.controllers)


class _Batch:
    """One ``apply``: the steps that are still good, and the errors of those that aren't."""

    def __init__(self, kind: Environments, steps: Sequence[Step]) -> None:
        self.kind = kind
        self.layout = kind.layout
        self.errors: dict[str, str] = {}
        self._removals = [step.name for step in steps if step.action == "remove"]
        self._work: dict[str, Work] = {step.name: step.data for step in steps if step.action != "remove"}
        self._records: dict[str, Record] = {}
        self._mounted = mounts.table()

    def _left(self, wanted: Callable[[Work], bool] = lambda work: True) -> dict[str, Work]:
        """The steps without an error so far."""
        return {name: work for name, work in self._work.items() if name not in self.errors and wanted(work)}

    def _fail(self, errors: Mapping[str, str]) -> None:
        for name, error in errors.items():
            self.errors.setdefault(name, error)

    def _supervise(self, call: Callable[[list[str]], Mapping[str, str]], names: Iterable[str]) -> None:
        """Have the supervisor do something to these environments' services."""
        services = {runtime.service_name(name): name for name in names}
        if not services:
            return
        try:
            self._fail({services[service]: error for service, error in call(list(services)).items()})
        except (NetspaceError, OSError) as err:
            self._fail(dict.fromkeys(services.values(), str(err)))

    def remove(self) -> None:
        """Stop and erase; the record goes last."""
        self._supervise(self.kind.supervisor.remove, self._removals)

        def erase(name: str) -> None:
            runtime.delete(self.layout, name, self._mounted)
            rootfs.erase(self.layout, name)
            runtime.remove_cgroups(self.layout, self.kind.cgroup(name), self._mounted)
            runtime.remove_output(self.layout, name)
            files.remove(records.path(self.layout, name))

        self._fail(_each([name for name in self._removals if name not in self.errors], erase))

    def build(self) -> None:
        """Have every image and decide ids: nothing that runs is touched yet."""
        wanted: dict[str, list[str]] = {}
        built: dict[str, Image] = {}
        for name, work in self._left(lambda work: work.assemble).items():
            if work.build or work.record is None or not self.kind.store.file(work.record.image.digest).exists():
                wanted.setdefault(work.want.spec.image, []).append(name)

        def build(source: str) -> None:
            built[source] = self.kind.store.ensure(source)

        for source, error in _each(wanted, build).items():
            self._fail(dict.fromkeys(wanted[source], error))
        rebuilt = {name for names in wanted.values() for name in names}
        taken = {name: record.base for name, record in self.kind.recorded().items()}
        for name, work in self._left().items():
            try:
                base = ids.allocate([name], taken)[name]
                taken[name] = base
                image = built[work.want.spec.image] if name in rebuilt else None
                self._records[name] = self._record(name, work, base, image)
            except (NetspaceError, OSError) as err:
                self._fail({name: str(err)})

    def _record(self, name: str, work: Work, base: int, image: Image | None) -> Record:
        want = work.want
        if image is None:
            assert work.record is not None
            image = work.record.image
        if work.record is not None and not work.assemble:
            return replace(work.record, spec=want.spec, state=want.state, summary=want.files_summary)
        content = self.kind.render(name, want.spec, base, image)
        config = hashlib.sha256(content).hexdigest()
        return Record(want.spec, want.state, base, image, config, revision(self.kind.controllers), want.files_summary)

    def stop(self) -> None:
        """Stop what can't go on as it is. What is created must not run under an old record either."""
        defined = self.kind.supervisor.observe() if self._left(lambda work: work.record is None) else {}
        names = [
            name
            for name, work in self._left().items()
            if work.stop or (work.record is None and runtime.service_name(name) in defined)
        ]
        halt(self.layout, names)
        self._supervise(self.kind.supervisor.stop, names)

    def make(self) -> None:
        """Write records, mount, write configurations, hand out files."""
        left = self._left(lambda work: work.assemble)
        digests = {self._records[name].image.digest for name in left}
        unmountable = self.kind._mount_images(digests, self._mounted)
        self._fail(
            {
                name: unmountable[self._records[name].image.digest]
                for name in left
                if self._records[name].image.digest in unmountable
            }
        )

        def make(name: str) -> None:
            work, record = self._work[name], self._records[name]
            if work.record is None:
                rootfs.erase(self.layout, name)  # of one whose record was lost
            records.write(self.layout, name, record)
            if work.assemble:
                self.kind.assemble(name, record)
            self.kind.hand_out(name, record, work.want.files)

        self._fail(_each(self._left(), make))

    def define(self) -> None:
        """Tell the supervisor, all at once; what isn't to run must not be started at boot either."""
        left = self._left()
        if not left:
            return
        try:
            self.kind.supervisor.define(
                [self.kind.service(name, work.want.spec, self._mounted) for name, work in left.items()]
            )
        except (NetspaceError, OSError) as err:
            self._fail(dict.fromkeys(left, str(err)))
            return
        idle = [
            name
            for name, work in left.items()
            if not (work.start or work.stop) and (work.record is None or work.want.state == "stopped")
        ]
        self._supervise(self.kind.supervisor.stop, idle)

    def start(self) -> None:
        """Start, all at once, and see whether they really run."""
        for name in self._left(lambda work: work.start):
            if not self.layout.netns(name).exists():
                self._fail(
                    {name: f"its network namespace {self.layout.netns(name)} is missing; apply interfaces first"}
                )
        self._fail(start(self.kind, {name: work.want.spec for name, work in self._left(lambda w: w.start).items()}))


def halt(layout: Layout, names: Iterable[str]) -> None:
    """Note that these are about to be stopped by us."""
    for name in names:
        mark = runtime.halt_mark(layout, name)
        if mark.parent.is_dir():
            mark.touch(mode=0o600)


def start(kind: Environments, specs: Mapping[str, Environment]) -> dict[str, str]:
    """Start environments that are made; return why some don't run, by name."""
    services = {runtime.service_name(name): name for name in specs}
    if not services:
        return {}
    for name in specs:
        files.remove(runtime.log(kind.layout, name))
    try:
        failed = kind.supervisor.start(list(services))
        time.sleep(_GRACE)
        statuses = kind.supervisor.observe()
    except (NetspaceError, OSError) as err:
        return dict.fromkeys(specs, str(err))
    errors = {}
    for service, name in services.items():
        files.remove(runtime.halt_mark(kind.layout, name))
        status = statuses.get(service, Status("stopped"))
        complaint = runtime.failure(kind.layout, name)
        if complaint and status.state != "running":
            errors[name] = f"can't be started: {complaint}"
        elif service in failed:
            errors[name] = failed[service]
        elif status.state == "failed" or (status.state != "running" and status.exit not in ("", "exit 0")):
            again = "; it is started again and again" if status.state == "starting" else ""
            errors[name] = (
                f"ended right after its start ({status.exit or 'no reason known'}){again}; its logs may say why"
            )
    return errors


def describe(record: Record, status: Status | None) -> dict[str, Any]:
    """One environment in a table; see :meth:`Environments.list`."""
    status = status or Status("stopped")
    return {
        "state": status.state,
        "pid": status.pid,
        "since": status.since,
        "restarts": status.restarts,
        "exit": status.exit,
        "image": record.spec.image,
        "digest": f"sha256:{record.image.digest}",
        "wanted": record.state,
    }


def revision(controllers: Collection[str]) -> str:
    """What tells one hardening from another: a digest of a sample's configuration.

    A new version of this library that hardens otherwise thus restarts what runs, and so does
    a host that can keep limits which it could not before.
    """
    sample = Environment(image="tar:/sample", command=("/sample",))
    rendered = oci.config("sample", sample, layout=Layout(), base=ids.FIRST, cgroup="/sample", controllers=controllers)
    return hashlib.sha256(encode(rendered)).hexdigest()[:16]


def encode(config: Mapping[str, Any]) -> bytes:
    """A configuration as it is written; compact, since there is one per environment."""
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def _taken(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]) -> dict[str, str]:
    """Which want a folder that another environment has and keeps, and why that can't be.

    Within one declaration that is an error already; this is about environments declared apart.
    """
    refused: dict[str, str] = {}
    while True:
        # One that is refused keeps what it has, so that may be another's obstacle in turn.
        kept = {
            owner: seen.record.spec.volumes
            for owner, seen in observed.environments.items()
            if owner not in remove and (owner not in desired or owner in refused)
        }
        found = {
            name: f"volume {volume.source}: environment {owner} has {its.source}; give each its own folder"
            for name, want in desired.items()
            for volume in want.spec.volumes
            for owner, theirs in kept.items()
            if name not in refused and owner != name
            for its in theirs
            if within(volume.source, its.source) or within(its.source, volume.source)
        }
        if not found:
            return refused
        refused.update(found)


def _compare(name: str, want: DesiredEnvironment, seen: Seen, source: images.Seen, current: str) -> Step | None:
    record, status = seen.record, seen.status
    changes = _differences(record.spec, want.spec)
    build = "image" in changes
    if not build and source.identity and source.identity != record.image.identity:
        build = True
        changes["image"] = {"old": f"sha256:{record.image.digest}", "new": f"what {want.spec.image} is now"}
    if record.revision != current:
        changes["hardening"] = {"old": record.revision, "new": current}
    depends = any(key.partition(":")[0] not in _LIVE for key in changes)
    if record.state != want.state:
        changes["state"] = {"old": record.state, "new": want.state}
    changes.update(_files_changes(want, seen))

    runs = status is not None and status.state in ("running", "starting")
    # A program that is not to be restarted after its success has done what was asked.
    done = (
        status is not None
        and (status.state, status.exit) == ("stopped", "exit 0")
        and not seen.halted
        and want.spec.restart != "always"
    )
    run = want.state == "running" or (want.state == "present" and runs)
    assemble = depends or not seen.assembled
    stop = runs and (assemble or not seen.namespace or not run)
    begin = run and (stop or not (runs or (done and not assemble)))
    work = Work(want, record, build=build, assemble=assemble, stop=stop, start=begin)

    reasons = []
    if not seen.assembled:
        reasons.append("its root or configuration is missing or damaged")
    if not seen.namespace:
        reasons.append("its network namespace was replaced")
    if status is None:
        reasons.append("its service is not defined")
    elif begin and not runs:
        reasons.append(f"it is {status.state}" + (f" ({status.exit})" if status.exit else ""))
    if stop and run:
        action = "restart"
    elif stop:
        action = "stop"
    elif begin:
        action = "start"
    elif assemble:
        action = "change"
    elif changes or status is None:
        action = "update"
    else:
        return None
    return Step(KIND, name, action, changes, "; ".join(reasons), work)


def _differences(old: Environment, new: Environment) -> dict[str, dict[str, Any]]:
    changes = files.differences(parse.encode(records.own(old)), parse.encode(records.own(new)))
    return {key: _shown(key, change) for key, change in changes.items()}


def _created(want: DesiredEnvironment) -> Changes:
    declared = {key: value for key, value in parse.encode(records.own(want.spec)).items() if value is not None}
    if declared["env"]:
        declared["env"] = dict.fromkeys(declared["env"], _HIDDEN)
    return {key: {"old": None, "new": value} for key, value in {**declared, **want.files_summary}.items()}


def _shown(key: str, change: dict[str, Any]) -> dict[str, Any]:
    """Values of variables may be secrets: show that they differ, not what they are."""
    if key.partition(":")[0] != "env":
        return change
    return {side: None if value is None else f"({side} value)" for side, value in change.items()}


def _files_changes(want: DesiredEnvironment, seen: Seen) -> dict[str, dict[str, Any]]:
    wanted = handout.digests(want.files)
    if seen.files == wanted and dict(seen.record.summary) == dict(want.files_summary):
        return {}
    changes = files.differences(seen.record.summary, want.files_summary)
    for file in sorted({*wanted, *(seen.files or {})}):
        before, after = (seen.files or {}).get(file), wanted.get(file)
        if before != after:
            # Not even a digest: the content may be a secret.
            changes[f"files:{file}"] = {"old": before and "(old content)", "new": after and "(new content)"}
    return changes


def _each(items: Iterable[T], act: Callable[[T], object]) -> dict[T, str]:
    """Do *act* for each item, several at once; return what went wrong."""

    def attempt(item: T) -> tuple[T, str]:
        try:
            act(item)
        except (NetspaceError, OSError) as err:
            return item, str(err)
        except Exception as err:  # whatever it is, the other items go on
            return item, f"{type(err).__name__}: {err}"
        return item, ""

    todo = list(items)
    if len(todo) < 2:
        done = [attempt(item) for item in todo]
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            done = list(pool.map(attempt, todo))
    return {item: error for item, error in done if error}
