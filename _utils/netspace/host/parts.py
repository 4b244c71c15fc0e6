"""Parts of a host that all use cases share: the four kinds, the supervisor, the lock, and the removal of leftovers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from netspace import files
from netspace.errors import NetspaceError, raise_any
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Reconciler, Result, Step
from netspace.spec.types import Declaration, Interface

if TYPE_CHECKING:
    from netspace.attestation.reconciler import Attestations
    from netspace.environment.images.remote import Remote
    from netspace.environment.reconciler import Environments
    from netspace.host.secrets import Source
    from netspace.interface.plan import DesiredInterfaces
    from netspace.interface.reconciler import Interfaces
    from netspace.link.reconciler import Links
    from netspace.link.record import Record as LinkRecord
    from netspace.supervision.service import Service, Supervisor

Desired = TypeVar("Desired")
Observed = TypeVar("Observed")

Progress = Callable[[str], None]
Applied = Callable[[Sequence[Outcome]], None]


CHANGED = "; netspace, or its definition, changed"
"""The reason for the restart of a service of netspace's own."""


def _silent(_: str) -> None:
    """Ignore a progress message."""


def _unheard(_: Sequence[Outcome]) -> None:
    """Ignore the outcomes of steps."""


class Parts:
    """The parts that all use cases of a host share.

    :param layout: the instance's paths and names.
    :param progress: called with a short text before something that takes long.
    :param remote: the fetcher of image sources that are not on this host; see ``images.remote``.
    :param applied: called with the outcomes of each kind's steps, as soon as they are known.
    :param source: returns the secret at a source (``sdb://...``); None: the caller can't read any.
    :param minion: the id by which the master knows this host; empty: the caller doesn't know it.
    """

    def __init__(
        self,
        layout: Layout,
        progress: Progress = _silent,
        remote: Remote | None = None,
        applied: Applied = _unheard,
        source: Source | None = None,
        minion: str = "",
    ) -> None:
        self.layout = layout
        self.progress = progress
        self.applied = applied
        self.remote = remote
        self.source, self.minion = source, minion
        self.give_up: Callable[[], bool] | None = None
        """Called repeatedly while another run holds the lock; when it returns True, this run ends with an error."""
        self._holds = False
        self._guard: Callable[[Plan], None] | None = None

    @functools.cached_property
    def supervisor(self) -> Supervisor:
        from netspace import supervision

        return supervision.select(self.layout)

    @functools.cached_property
    def attestations(self) -> Attestations:
        from netspace.attestation.reconciler import Attestations

        return Attestations(self.layout)

    @functools.cached_property
    def interfaces(self) -> Interfaces:
        from netspace.interface.reconciler import Interfaces

        return Interfaces(self.layout)

    @functools.cached_property
    def links(self) -> Links:
        from netspace.link.reconciler import Links

        return Links(self.layout, self.supervisor, progress=self.progress)

    @functools.cached_property
    def environments(self) -> Environments:
        from netspace.environment.reconciler import Environments

        return Environments(
            *(self.layout, self.supervisor, self.remote),
            give=lambda owners: self.interfaces.own(owners),
            progress=self.progress,
            tell=self._publish,
        )

    def _publish(self) -> None:
        """Publish the applied environments and links to the host's own peer, if a link leads to the host."""
        from netspace.host.peer import publish

        publish.publish(self.layout, self.links)

    # -- applying one kind ---------------------------------------------------------------
    @contextlib.contextmanager
    def _lock(self, test: bool) -> Iterator[None]:
        """Hold the lock, except in a test; turn system errors into netspace's errors.

        The same object may take the lock again while it holds it.
        """
        with files.refusals_told():
            if test or self._holds:
                yield
                return
            with files.locked(self.layout.lock, self.give_up):
                self._holds = True
                try:
                    yield
                finally:
                    self._holds = False

    def _permit(self, plan: Plan) -> None:
        """Refuse a plan that isn't permitted, before it is applied (:mod:`netspace.host.planned`).

        :raises NetspaceError: a step isn't permitted.
        """
        if self._guard is not None:
            self._guard(plan)

    def _applied(self, plan: Plan, apply: Callable[[Sequence[Step]], Sequence[Outcome]]) -> Result:
        """Apply a plan's steps; report progress before, and the outcomes after."""
        self._permit(plan)
        number = len(plan.steps)
        self.progress(f"{plan.steps[0].kind}: {number} change{'' if number == 1 else 's'} to make")
        outcomes = apply(plan.steps)
        self.applied(outcomes)
        return Result(plan, outcomes)

    def _run(
        self,
        kind: Reconciler[Desired, Observed],
        desired: Desired,
        remove: Collection[str],
        test: bool,
        seen: Observed | None = None,
        apply: Callable[[Sequence[Step]], list[Outcome]] | None = None,
    ) -> Result:
        """Observe one kind, and plan its changes; apply the plan, except in a test.

        :param kind: the reconciler of the kind.
        :param desired: the desired state.
        :param remove: names of things to remove.
        :param seen: the observation, if it was already made.
        :param apply: applies the steps instead of the kind's own ``apply``.
        """
        plan = kind.plan(desired, kind.observe() if seen is None else seen, remove)
        if test or not plan.steps:
            return Result(plan)
        return self._applied(plan, apply or kind.apply)

    def _run_interfaces(self, desired: DesiredInterfaces, remove: Collection[str], test: bool) -> Result:
        """Apply interfaces. Only those concerned are observed, because a host may have a thousand others."""
        seen = self.interfaces.observe(desired, {*desired.interfaces, *remove}, remove)
        plan = self.interfaces.plan(desired, seen, remove)
        if self.interfaces.concerns_all(plan):
            plan = self.interfaces.plan(desired, self.interfaces.observe(desired, doomed=remove), remove)
        if test or not plan.steps:
            return Result(plan)
        return self._applied(plan, self.interfaces.apply)

    def _remove_interfaces(self, names: Collection[str], test: bool) -> Result:
        from netspace.interface.plan import DesiredInterfaces

        there = self.interfaces.names(names)
        if not there:
            return Result(Plan())
        removed = self._run_interfaces(DesiredInterfaces(Declaration().network, {}), there, test)
        return removed.joined(self._names((), there, test))

    def _linked(self) -> LinkRecord:
        """Return the record of applied links, without loading the code that connects to brokers."""
        from netspace.link import record

        return record.read(self.layout)

    def _names(self, desired: Collection[Interface], others: Collection[str], test: bool) -> Result:
        """Start the service that resolves DNS names in interfaces' rules if a rule has one; else remove the service.

        The file of answers is made before the service is started, and removed after it has ended. So without the file,
        there is no service.

        :param desired: the interfaces that were applied.
        :param others: the environments whose recorded interfaces don't count.
        """
        from netspace.interface.names import record

        file = record.path(self.layout)
        wanted = bool(record.asked_for(desired))
        if not wanted:
            if not file.exists():
                return Result(Plan())
            wanted = self.interfaces.named(others)
        from netspace.interface.names import refresher  # most hosts have no such rule

        service = refresher.service(self.layout, self._library(test, needed=wanted))
        status = self.supervisor.observe([refresher.NAME]).get(refresher.NAME)
        old = None if status is None else status.state
        stale = wanted and bool(self.supervisor.differing([service]))
        if wanted and not stale and old in ("running", "starting"):
            return Result(Plan())
        if not wanted and old is None:
            if not test:
                files.remove(file)
            return Result(Plan())
        change = {"state": {"old": old, "new": "running" if wanted else None}}
        action = "start" if wanted and not stale else "restart" if wanted else "remove"
        why = "it looks up names in rules" + (CHANGED if action == "restart" else "")
        step = Step("service", self.layout.service(refresher.NAME), action, change, why)
        if test:
            return Result(Plan([step]))
        try:
            self._apply_names(service if wanted else None, stale)
        except NetspaceError as err:
            return Result(Plan([step]), [Outcome(step, str(err))])
        return Result(Plan([step]), [Outcome(step)])

    def _apply_names(self, wanted: Service | None, stale: bool) -> None:
        from netspace.interface.names import record, refresher

        file = record.path(self.layout)
        if wanted is None:
            raise_any(self.supervisor.remove([refresher.NAME]))
            files.remove(file)
            return
        if not file.exists():
            record.begin(self.layout)
        if stale:
            raise_any(self.supervisor.stop([refresher.NAME]))
        self.supervisor.define([wanted])
        raise_any(self.supervisor.start([refresher.NAME]))

    # -- upkeep --------------------------------------------------------------------------
    def _library(self, test: bool, *, needed: bool = False) -> str:
        """Bring the library's copy on the host up to date, except in a test; return its digest.

        In a test, return the digest that the copy would have. By it, a dry run knows the services that an apply would
        restart with a new version. A running supervisor loads the new version without a restart of programs.

        :param needed: whether to make a copy on a host that has none yet. Without a copy, the result is empty.
        """
        from netspace import library_copy

        there = library_copy.installed(self.layout)
        if test:
            return library_copy.coming(self.layout) if there else ""
        if (there or needed) and library_copy.install(self.layout) and there:
            self.supervisor.attend()
        return library_copy.installed(self.layout)

    def _attend(self, test: bool) -> Result:
        """Start the supervisor if it is down.

        Services are observed only after this, because a started supervisor restarts ended services.
        """
        if self.supervisor.attended():
            return Result(Plan())
        change = {"state": {"old": "down", "new": "running"}}
        step = Step("service", self.layout.service("supervisor"), "start", change, "nothing restarts ended programs")
        if test:
            return Result(Plan([step]))
        try:
            self.supervisor.attend()
        except NetspaceError as err:
            return Result(Plan([step]), [Outcome(step, str(err))])
        return Result(Plan([step]), [Outcome(step)])

    def _tidy(self, test: bool) -> None:
        """Remove the leftovers of a killed audit or update.

        If an update's leftovers can't be removed, the next run reports that.
        """
        if test:
            return
        if self.layout.records("audits").is_dir():
            self.sweep()
        if self.layout.records("beside").is_dir():
            self.environments.sweep()

    def sweep(self) -> None:
        """Remove the twins that a killed audit left; the caller holds the lock."""
        from netspace.environment.audit import twin

        for names in twin.noted(self.layout):
            for name in names:
                twin.erase(self.layout, name)
            if self._remove_interfaces(names, False).ok:
                twin.forget(self.layout, names)
