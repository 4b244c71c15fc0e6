"""Application of the steps that were planned for environments, as one batch.

Images are built before any running environment is touched. A record is written before the things in it are made, and
removed after they are gone. So if a run is killed at any moment, the next run can repair the damage. An error of one
environment doesn't stop the others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from netspace import files
from netspace.environment import claims, user_ids
from netspace.environment import record as records
from netspace.environment.builder import Builder, each
from netspace.environment.claims import Claims
from netspace.environment.container import domain, oci_config, oci_runtime
from netspace.environment.desired import EnvironmentChange
from netspace.environment.health import record as verdict
from netspace.environment.images import Image
from netspace.environment.observe import Observed
from netspace.environment.record import Record
from netspace.environment.runtimes import USUAL
from netspace.environment.starting import problems, start, tell_host
from netspace.environment.stopping import answers, halt
from netspace.environment.storage import injected_files, mounts, rootfs, volumes
from netspace.environment.update import rolling, rollout, trials, watcher
from netspace.errors import NetspaceError, raise_any
from netspace.known import also, examples, without
from netspace.plan import Outcome, Step
from netspace.supervision.service import Supervisor

Give = Callable[[Mapping[str, int]], Mapping[str, str]]


class ApplyRun:
    """One application of steps, with the errors of the steps that failed.

    :param purge: also delete the volumes of removed environments, except host folders.
    :param give: called before environments start, with the host user id of each environment. It makes this user the
        owner of the devices of the environment's interface, and returns the errors.
    :param observed: the observation from which the steps were planned; None if another run may have changed something
        since.
    :param gone: called once the programs of all removed environments have ended.
    :param progress: called with a short text before a step that takes long.
    :param tell: called before the start of environments that may send requests to the host's peer; publishes the
        records.
    """

    def __init__(
        self,
        making: Builder,
        supervisor: Supervisor,
        steps: Sequence[Step],
        *,
        purge: bool = False,
        give: Give | None = None,
        observed: Observed | None = None,
        gone: Callable[[], None] | None = None,
        progress: Callable[[str], None] = lambda _: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.making = making
        self.layout = making.layout
        self.supervisor = supervisor
        self.errors: dict[str, str] = {}
        self._steps = steps
        self._purge = purge
        self._give = give
        self._gone = gone
        self._progress, self._tell = progress, tell
        self._removals = [step.name for step in steps if step.action == "remove"]
        self._work: dict[str, EnvironmentChange] = {step.name: step.data for step in steps if step.action != "remove"}
        self._records: dict[str, Record] = {}
        self._tried: set[str] = set()  # environments that this run started, with or without success
        self._taken_back: list[Step] = []
        self._removed: set[str] = set()
        self._written: set[str] = set()
        self._revision = oci_config.revision(making.controllers)
        self._mounted = mounts.table() if observed is None else observed.mounted
        self._observed = observed

    def run(self) -> list[Outcome]:
        """Apply the steps: remove, build images and stop; then make and start all environments together."""
        self.making.store.tidy()
        self.making.store.note_seen()
        self._remove()
        self._build()
        self._try_beside()
        self._stop()
        self._make()
        self._prepare()
        self._audit()
        self._define()
        self._watch()
        self._start()
        self._prove()
        self._retire()
        self.making.confinement.forget(lambda: {its.confined for its in examples(self._claims(), claims.sort).values()})
        taken_back = [Outcome(step) for step in self._taken_back]
        return taken_back + [Outcome(step, self.errors.get(step.name, "")) for step in self._steps]

    def _left(self, wanted: Callable[[EnvironmentChange], bool] = lambda work: True) -> dict[str, EnvironmentChange]:
        """Return the work of the steps that have no error so far and for which *wanted* returns True."""
        return {name: work for name, work in self._work.items() if name not in self.errors and wanted(work)}

    def _claims(self) -> Mapping[str, Claims]:
        """Return all environments' claims: the observed claims with this run's changes, or the claims on disk."""
        if self._observed is None:
            return claims.index(self.layout).read()
        known = without(self._observed.claims, self._removed)
        return also(known, {name: claims.of(self._records[name]) for name in self._written})

    def _fail(self, errors: Mapping[str, str]) -> None:
        for name, error in errors.items():
            self.errors.setdefault(name, error)

    def _supervise(self, call: Callable[[list[str]], Mapping[str, str]], names: Iterable[str]) -> None:
        """Call a method of the supervisor (*call*) for these environments' services; record the errors."""
        if todo := list(names):
            self._fail(answers(self.layout, call, todo))

    def _remove(self) -> None:
        """Stop and delete the environments that are to be removed. Their records are removed last."""
        self._fail(rolling.erase(self.layout, self.supervisor, self._removals))
        at_once = self._ended(self._removals)
        if self._removals:
            self._progress(f"removing {_named(self._removals)}")
        if at_once and self._gone is not None:
            self._gone()
        self._supervise(self.supervisor.remove, self._removals)
        if not at_once and self._gone is not None:
            self._gone()

        made = records.some(self.layout, self._removals)

        def erase(name: str) -> None:
            used = made[name].runtime if name in made else USUAL
            oci_runtime.delete(self.layout, name, self._mounted, used)
            verdict.clear(self.layout, [name])
            rootfs.erase(self.layout, name)
            if self._purge:
                volumes.erase(self.layout, name)
            oci_runtime.remove_cgroups(self.layout, self.making.cgroup(name), self._mounted)
            oci_runtime.remove_output(self.layout, name, self.layout.beside(name))
            files.remove(records.path(self.layout, name))

        doomed = [name for name in self._removals if name not in self.errors]
        self._fail(each(doomed, erase))
        self._removed = {name for name in doomed if name not in self.errors}

    def _ended(self, names: Iterable[str]) -> bool:
        """Return whether all of these environments had ended at the observation; False without an observation."""
        if self._observed is None:
            return False
        seen = (self._observed.environments.get(name) for name in names)
        return all(one is None or one.status is None or one.status.state in ("stopped", "failed") for one in seen)

    def _build(self) -> None:
        """Build the missing images, allocate user ids and compose the records. Changes no running environment."""
        wanted: dict[tuple[str, str], list[str]] = {}
        built: dict[tuple[str, str], Image] = {}

        def source(work: EnvironmentChange) -> tuple[str, str]:
            return work.want.image, work.want.spec.source_hash or ""

        for name, work in self._left(lambda work: work.assemble).items():
            if work.build or work.record is None or not self.making.store.file(work.record.image.digest).exists():
                wanted.setdefault(source(work), []).append(name)

        def build(of: tuple[str, str]) -> None:
            self._progress(f"image {of[0]}: building it, unless it exists already")
            built[of] = self.making.store.ensure(*of)

        for of, error in each(wanted, build).items():
            self._fail(dict.fromkeys(wanted[of], error))
        rebuilt = {name for names in wanted.values() for name in names}
        taken = claims.Bases(self._claims())
        for name, work in self._left().items():
            try:
                base = user_ids.free(name, taken) if work.record is None else work.record.base
                taken.add(base)
                image = built[source(work)] if name in rebuilt else None
                record = self._record(name, work, base, image)
                if work.record is not None and work.assemble:
                    rootfs.check(self.layout, name, record.spec, record.image.digest)
                self._records[name] = record
            except (NetspaceError, OSError) as err:
                self._fail({name: str(err)})

    def _record(self, name: str, work: EnvironmentChange, base: int, image: Image | None) -> Record:
        want = work.want
        if image is None:
            assert work.record is not None
            image = work.record.image
        if work.record is not None and not work.assemble:
            self.making.confinement.ensure(work.record.confined)
            record = msgspec.structs.replace(
                work.record,
                spec=want.spec,
                state=want.state,
                summary=want.files_summary,
                previous=work.previous,
                failed=work.failed,
            )
            if work.tune:
                content = self.making.tuned(name, record)
                record = msgspec.structs.replace(record, config=hashlib.sha256(content).hexdigest())
            return record
        if want.spec.image_cache == "own":
            from netspace.environment.images import copies  # few environments want it

            copies.check(self.making.store, image.digest)
        confined = self.making.confinement.chosen(want.spec, want.runtime)
        content = self.making.render(name, want.spec, base, image, want.runtime, want.profile, confined)
        config = hashlib.sha256(content).hexdigest()
        return Record(
            *(want.spec, want.state, base, image, config, self._revision, want.files_summary, want.profile),
            want.runtime,
            previous=work.previous,
            failed=work.failed,
            confined=confined,
        )

    def _try_beside(self) -> None:
        """Start a second instance of each environment that has a rolling update.

        The running instance is replaced only if the second instance is healthy.
        """
        work = self._left(lambda work: work.rolling)
        if not work:
            return
        self._progress(f"updating {_named(work)}: waiting until the new instance is healthy")
        wanted = {name: self._records[name] for name in work}
        try:
            failed, errors = rolling.try_beside(
                self.making, self.supervisor, wanted, {name: one.want.files for name, one in work.items()}
            )
        except (NetspaceError, OSError) as err:
            self._fail(dict.fromkeys(work, str(err)))
            return
        self._fail(errors)

        def leave(name: str) -> None:
            """Keep the running instance. Record the failed update, and write the current ``environment.json``."""
            record = work[name].record
            assert record is not None
            noted = rollout.failed(wanted[name], failed[name])
            records.write(self.layout, name, msgspec.structs.replace(record, failed=noted))
            from netspace.environment.update import kept_card

            handed = kept_card.of(work[name].want.files, record.spec)
            raise_any(injected_files.keep(self.layout, {name: handed}))
            self.making.hand_out(name, record, handed)

        unnoted = each(failed, leave)
        self._fail(
            {
                name: f"the update was not made: its second instance failed: {reason}; "
                + (unnoted.get(name) or "it is not tried again until its declaration or its image changes")
                for name, reason in failed.items()
            }
        )
        self._mounted = mounts.table()

    def _retire(self) -> None:
        """Remove the second instances. At this point, the main instance runs the new or the previous version."""
        tried = self._work.keys() & records.updating(self.layout)
        self._fail(rolling.erase(self.layout, self.supervisor, tried))

    def _stop(self) -> None:
        """Stop the environments whose step demands it.

        An environment whose record was lost may still have a service. It is stopped before the new record is written.
        """
        created = [oci_runtime.service_name(name) for name in self._left(lambda work: work.record is None)]
        defined = self.supervisor.observe(created) if created else {}
        names = [
            name
            for name, work in self._left().items()
            if work.stop or (work.record is None and oci_runtime.service_name(name) in defined)
        ]
        if names:
            self._progress(f"stopping {_named(names)}")
        halt(self.layout, names)
        self._supervise(self.supervisor.stop, names)
        verdict.clear(self.layout, names)

    def _make(self) -> None:
        """Write records, mount images and roots, and write configurations and the files in ``/run/netspace``."""
        left = self._left(lambda work: work.assemble)
        digests = {self._records[name].image.digest for name in left}
        unmountable = self.making.mount_images(digests, self._mounted)
        self._fail(
            {
                name: unmountable[self._records[name].image.digest]
                for name in left
                if self._records[name].image.digest in unmountable
            }
        )

        # An environment without a record may have layers: its record was lost.
        self._fail(
            each(
                self._left(lambda work: work.record is None),
                lambda name: rootfs.adopt(self.layout, name, self._records[name].image.digest),
            )
        )
        written = {name: self._records[name] for name in self._left()}
        unwritten = records.write_all(self.layout, written)
        self._written = written.keys() - unwritten.keys()
        self._fail(unwritten)
        self._fail(injected_files.keep(self.layout, {name: work.want.files for name, work in self._left().items()}))

        def make(name: str) -> None:
            work, record = self._work[name], self._records[name]
            if work.assemble:
                self.making.assemble(name, record)
            elif work.tune:
                self.making.tune(name, record, self._mounted)
            self.making.hand_out(name, record, work.want.files)

        self._fail(each(self._left(), make))

    def _prepare(self) -> None:
        self._fail(self._ready({name: self._records[name] for name in self._left()}))

    def _ready(self, known: Mapping[str, Record]) -> Mapping[str, str]:
        """Give interfaces' devices to environments' users, and publish the records to the host's peer."""
        owners = {
            name: domain.owner(record.runtime, record.base + oci_config.user_of(record.spec, record.image.defaults))
            for name, record in known.items()
            if record.spec.interface is not None and record.spec.interface.DEVICES
        }
        given = self._give(owners) if owners and self._give is not None else {}
        return {**tell_host(self._tell, known), **given}

    def _audit(self) -> None:
        """Begin to record refused calls before programs start. If this fails, the host's apply reports it later."""
        known = {name: self._records[name] for name, work in self._left().items() if work.want.spec.audit}
        if not known:
            return
        from netspace.environment.refusals import recording

        with contextlib.suppress(OSError):
            recording.begin(self.layout, known)

    def _define(self) -> None:
        """Define all services at once. Stop services that must not run, so that a boot doesn't start them either."""
        left = self._left()
        if not left:
            return
        try:
            self.supervisor.define(
                [
                    self.making.service(name, work.want.spec, self._records[name].runtime, self._mounted)
                    for name, work in left.items()
                ]
            )
        except (NetspaceError, OSError) as err:
            self._fail(dict.fromkeys(left, str(err)))
            return
        for name, work in left.items():
            if work.want.state == "running" and not work.start:  # it runs, or ended by itself
                files.remove(oci_runtime.halt_mark(self.layout, name))
        idle = [
            name
            for name, work in left.items()
            if not (work.start or work.stop) and (work.record is None or work.want.state == "stopped")
        ]
        halt(self.layout, idle)
        self._supervise(self.supervisor.stop, idle)
        verdict.clear(self.layout, idle)

    def _watch(self) -> None:
        """Start the health-watching service if any environment needs it; otherwise remove the service."""
        try:
            watcher.ensure(
                self.layout, self.supervisor, any(its.watched for its in examples(self._claims(), claims.sort).values())
            )
        except (NetspaceError, OSError) as err:
            needy = self._left(lambda work: claims.watched(work.want.spec))
            self._fail(dict.fromkeys(needy, str(err)))

    def _start(self) -> None:
        """Start all environments at once, and check whether they really run."""
        for name in self._left(lambda work: work.start):
            if not self.layout.netns(name).exists():
                self._fail(
                    {name: f"its network namespace {self.layout.netns(name)} is missing; apply interfaces first"}
                )
        todo = self._left(lambda work: work.start)
        self._tried = set(todo)
        if todo:
            self._progress(f"starting {_named(todo)}")
        self._fail(start(self.layout, self.supervisor, todo, self._records))
        gated = [name for name, work in self._left(lambda work: work.start).items() if work.want.spec.after]
        if gated:
            self._progress(f"waiting for the environments before {_named(gated)}")
            waiting = rollout.awaited(self.layout, self.supervisor, gated, records.in_order(self.layout, gated))
            self._tried -= waiting.keys()
            self._fail(waiting)
            rest = [name for name in gated if name not in waiting]
            self._fail(problems(self.layout, self.supervisor, rest, self._records))

    # -- updates that are on trial -------------------------------------------------

    def _prove(self) -> None:
        """Check whether updates on trial are healthy, and roll unhealthy updates back.

        If an error kept this run from starting an update, the update stays on trial for the next run.
        """
        tried = {
            name: record
            for name, record in self._records.items()
            if record.previous is not None and (name in self._tried or name not in self.errors)
        }
        reasons = {name: self.errors[name] for name in tried if name in self.errors}
        asked = {name: record for name, record in tried.items() if name not in reasons}
        if not tried:
            return
        self._progress(f"waiting for the health of {_named(tried)}")
        for name, reason in rollout.wait(self.layout, self.supervisor, asked).items():
            if reason:
                reasons[name] = reason
                continue
            record = msgspec.structs.replace(tried[name], previous=None)
            records.write(self.layout, name, record)
            if not record.spec.read_only:
                rootfs.forget_layers(self.layout, name, {record.image.digest})
        if reasons:
            self._take_back({name: tried[name] for name in reasons}, reasons)

    def _take_back(self, failed: Mapping[str, Record], reasons: Mapping[str, str]) -> None:
        taken = trials.take_back(
            *(self.making, self.supervisor, failed, reasons), self._revision, self._ready, self._mounted
        )
        self.errors.update(taken.errors)
        self._taken_back += taken.steps


def _named(names: Collection[str]) -> str:
    """Return a short text with these environments' names, for a progress message."""
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} environments"
