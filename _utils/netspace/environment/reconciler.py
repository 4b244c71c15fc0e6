"""Reconciler of environments: observe, plan, apply.

This module joins ``observe``, ``plan`` (pure), ``apply`` and ``builder`` for one host. It does not depend on
interfaces, links and trust: an environment's network namespace exists already, and the caller supplies the files for
``/run/netspace`` as bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from netspace import files, library_copy
from netspace.environment import claims, observe, programs, runs, runtimes
from netspace.environment import plan as compare
from netspace.environment import record as records
from netspace.environment.apply import ApplyRun, Give
from netspace.environment.builder import Builder, each
from netspace.environment.container import apparmor, oci_runtime
from netspace.environment.desired import KIND, DesiredEnvironment
from netspace.environment.health import record as verdict
from netspace.environment.images import Store
from netspace.environment.images.remote import Remote
from netspace.environment.observe import Observed
from netspace.environment.record import Record
from netspace.environment.starting import start, tell_host
from netspace.environment.stopping import halt
from netspace.environment.storage import mounts, rootfs, tree_removal, volumes
from netspace.environment.update import rolling
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Step
from netspace.supervision import weights
from netspace.supervision.service import Supervisor

Outcomes = list[Outcome]


def _silent(_: str) -> None:
    """Ignore a progress message."""


class Environments:
    """The environments of one host. See ``netspace.plan.Reconciler``.

    :param supervisor: keeps the environments running.
    :param give: makes environments' users the owners of their interfaces' devices; returns the errors.
    :param remote: fetches images' sources that are not on this host.
    :param progress: called with a short text before a step that takes long.
    :param tell: publishes the environments' records to the host's peer (the process that answers their requests).
        Called before the start of environments that may send such requests.
    """

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        remote: Remote | None = None,
        give: Give | None = None,
        progress: Callable[[str], None] = _silent,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.store = Store(layout, remote)
        self._give = give
        self._progress, self._tell = progress, tell
        self.making = Builder(layout, self.store)
        self._index = claims.index(layout)

    # -- seeing ------------------------------------------------------------------

    def names(self, among: Iterable[str] | None = None) -> set[str]:
        """Return the names of the environments that have a record.

        :param among: return only names of this collection.
        """
        return files.record_names(self.layout.records(records.KIND), among)

    def recorded(self, names: Collection[str] | None = None) -> dict[str, Record]:
        """Return environments' records (:class:`Record`), by name.

        :param names: the environments whose records are read, if they exist; None: all.
        :raises StateError: when a record can't be read.
        """
        return records.read(self.layout) if names is None else records.some(self.layout, names)

    def readable(self, names: Collection[str] | None = None) -> tuple[dict[str, Record], dict[str, str]]:
        """Return the readable records, and the errors of unreadable records, by name.

        This is for operations that handle each environment separately.

        :param names: the environments whose records are read, if they exist; None: all.
        """
        return records.read_each(self.layout, names)

    def observe(
        self,
        about: Collection[str] | None = None,
        wanted: Collection[str] = (),
        *,
        sized: bool = True,
        version: str | None = None,
    ) -> Observed:
        """Observe everything once: records, services, mounts, files, image sources. Changes nothing.

        :param about: the environments for which a step may be planned; None: all.
        :param wanted: images that may have to be built.
        :param sized: whether a desired environment has file systems with a declared size (``limits:disk``, a volume's
            ``size``).
        :param version: digest of the copy of netspace's library that the health service should run; None: the present
            copy.
        """
        return observe.observe(
            *(self.layout, self.supervisor, self.store, self._index),
            *(self.making.controllers, self.making.devices, about, wanted),
            sized=sized,
            version=library_copy.installed(self.layout) if version is None else version,
        )

    def with_programs(self, desired: Mapping[str, DesiredEnvironment], observed: Observed, *, deep: bool) -> Observed:
        """Return *observed*, completed with the desired environments whose image lacks their program.

        :param deep: also read the sources of images that are not built yet.
        """
        lacking = programs.lacking(self.layout, self.store, desired, observed, deep=deep)
        return msgspec.structs.replace(observed, programless=lacking) if lacking else observed

    def note(self, names: Iterable[str]) -> None:
        """Update the index of claims from the records of these environments. The caller has the lock."""
        self._index.note(names)

    def list(self) -> dict[str, Any]:
        """Return a row of :func:`observe.describe` per environment: ``state``, ``health``, ``image`` and so on."""
        known, damaged = self.readable()
        around = observe.around(self.layout, self.supervisor, known, {*known, *damaged})
        return {
            name: observe.describe(self.layout, name, around, damaged.get(name, ""))
            for name in sorted({*known, *damaged})
        }

    # -- planning: pure ------------------------------------------------------------

    @staticmethod
    def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Plan the changes. See :func:`netspace.environment.plan.plan`."""
        return compare.plan(desired, observed, remove)

    # -- doing ---------------------------------------------------------------------

    def apply(
        self,
        steps: Sequence[Step],
        *,
        purge: bool = False,
        observed: Observed | None = None,
        gone: Callable[[], None] | None = None,
    ) -> Outcomes:
        """Apply the steps as one batch; an error of one environment doesn't stop the others.

        :param purge: also delete the volumes of removed environments, except for folders of the host.
        :param observed: the observation from which the steps were planned, if the lock was held since then.
        :param gone: called once the programs of all removed environments have ended.
        """
        try:
            self._index.begin()
            applying = ApplyRun(
                *(self.making, self.supervisor, steps),
                purge=purge,
                give=self._give,
                observed=observed,
                gone=gone,
                progress=self._progress,
                tell=self._tell,
            )
            outcomes = applying.run()
            self.note(step.name for step in steps)
        finally:
            self._index.end()
        return outcomes

    def plan_purge(self, names: Collection[str]) -> Plan:
        """Plan the deletion of the volumes of removed environments.

        :param names: names of environments. If an environment of a name exists, its volumes stay.
        """
        gone = {name: volumes.kept(self.layout, name) for name in sorted(set(names) - self.names(names))}
        changes = {name: {"volumes": {"old": targets, "new": None}} for name, targets in gone.items() if targets}
        return Plan([Step(KIND, name, "purge", change) for name, change in changes.items()])

    def apply_purge(self, steps: Sequence[Step]) -> Outcomes:
        """Delete the volumes that were planned to be deleted."""
        errors = each([step.name for step in steps], lambda name: volumes.erase(self.layout, name))
        return [Outcome(step, errors.get(step.name, "")) for step in steps]

    def sweep(self) -> dict[str, str]:
        """Remove remaining second instances of a killed run; return the errors, by name."""
        return rolling.erase(self.layout, self.supervisor, records.updating(self.layout))

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start assembled environments; return, by name, the error of each environment that doesn't run."""
        known, _ = records.read_each(self.layout, names)
        errors = tell_host(self._tell, known)
        return {**errors, **start(self.layout, self.supervisor, [name for name in names if name not in errors], known)}

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop these environments and their second instances, and wait for their end; return the errors, by name."""
        beside = rolling.erase(self.layout, self.supervisor, names)
        halt(self.layout, names)
        services = {oci_runtime.service_name(name): name for name in names}
        errors = self.supervisor.stop(list(services)) if services else {}
        runs.ended(self.layout, {name for service, name in services.items() if service not in errors})
        verdict.clear(self.layout, names)
        return {**beside, **{services[service]: error for service, error in errors.items()}}

    def withhold(self, names: Collection[str]) -> dict[str, str]:
        """Stop these environments, and keep them stopped until an apply or an operator starts them.

        A reboot doesn't start them, either.

        :return: the errors, by environment.
        """
        for name, record in records.some(self.layout, names).items():
            records.write(self.layout, name, msgspec.structs.replace(record, state="stopped"))
        return self.stop(names)

    def restore(self, without: Collection[str] = ()) -> dict[str, str]:
        """Rebuild mounts, bundles and files that a reboot removed, before the services start.

        An environment whose record can't be read is left unchanged.

        :param without: environments that are not rebuilt. They can't start, because they have no OCI bundle.
        :return: the errors, by environment.
        """
        known, _ = self.readable()
        errors = self.making.restore({name: record for name, record in known.items() if name not in without})
        self.note(known)
        weights.lower(self.layout)  # before the supervisor starts their programs
        left = {name: one for name, one in known.items() if name not in {*without, *errors} and one.state == "running"}
        try:
            runs.starting(self.layout, left)
        except NetspaceError as err:
            return {**dict.fromkeys(left, str(err)), **errors}
        return errors

    def hand_out(self, tell: Callable[[str], dict[str, bytes]]) -> dict[str, str]:
        """Write environments' current keys and trusted certificates into their ``/run/netspace``.

        :param tell: returns the files of an environment, as :meth:`netspace.link.reconciler.Links.handed` does.
        :return: the errors, by environment.
        """
        from netspace.environment.storage import injected_files

        every, damaged = self.readable()
        told = {name: tell(name) for name in every}
        known = {name: record for name, record in every.items() if told[name]}
        wanted = {name: {**injected_files.read(self.layout, name), **told[name]} for name in known}
        failed = injected_files.keep(self.layout, wanted)

        def show(name: str) -> None:
            if self.layout.bundle(name).is_dir():  # else it is withheld for lack of trust
                self.making.hand_out(name, known[name], wanted[name])

        return {**damaged, **failed, **each(wanted.keys() - failed.keys(), show)}

    def hand_out_held(self, names: Collection[str]) -> dict[str, str]:
        """Write the files that netspace now holds for these environments into their ``/run/netspace``.

        :return: the errors, by environment.
        """
        from netspace.environment.storage import injected_files

        known, damaged = self.readable(names)
        there = {name for name in known if self.layout.bundle(name).is_dir()}
        return {
            **damaged,
            **each(there, lambda name: self.making.hand_out(name, known[name], injected_files.read(self.layout, name))),
        }

    def purge(self) -> None:
        """Remove images, mounts, empty cgroups and other remains after all environments were removed.

        :raises NetspaceError: when environments still exist.
        """
        import shutil

        if names := self.names():
            raise NetspaceError(f"there still are environments: {', '.join(sorted(names))}")
        self.store.prune(())
        folder, file_systems = self.layout.run / "environments", self.layout.disks("")
        mounted = mounts.table()
        for target in mounted:
            if Path(target).is_relative_to(folder) or Path(target).is_relative_to(file_systems):
                mounts.unmount(Path(target))
        for path in sorted(file_systems.rglob("*"), reverse=True):
            path.rmdir()  # an empty mount point of a volume
        oci_runtime.remove_cgroups(self.layout, f"/{self.layout.instance}", mounted)
        apparmor.Confinement(self.layout).forget(frozenset)
        for name in rootfs.layers(self.layout):  # of environments whose record was lost
            tree_removal.remove(self.layout.environment(name))
        states = [oci_runtime.state(self.layout, name) for name in runtimes.names()]
        kept = (verdict.folder(self.layout), self.layout.inits, self.layout.images, self.layout.records(records.KIND))
        for left in (folder, *states, *kept):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            file_systems.rmdir()
