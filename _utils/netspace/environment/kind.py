"""Environments as a kind of thing: observe what is there, plan, apply.

Looking is in ``observe``, the pure comparison in ``compare``, doing in ``apply`` and
``making``; here they are joined for one host. Interfaces, links and trust are not known:
the namespace an environment joins stands already, and the files it is handed come as bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.environment import compare, mounts, observe, records, rolling, rootfs, runtime, runtimes, trees, volumes
from netspace.environment.apply import Applying, Give, halt, start
from netspace.environment.compare import DesiredEnvironment
from netspace.environment.images import Store
from netspace.environment.images.remote import Remote
from netspace.environment.making import Making, each
from netspace.environment.observe import Observed
from netspace.environment.records import Record
from netspace.errors import NetspaceError
from netspace.health import verdict
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Step
from netspace.supervision import Supervisor

Outcomes = list[Outcome]


class Environments:
    """The environments of one host. See ``netspace.plan.Kind``.

    :param supervisor: what keeps them running.
    :param give: gives interfaces' devices to these environments' users; returns what went wrong.
    :param remote: who fetches images' sources that are not on this host.
    """

    def __init__(
        self, layout: Layout, supervisor: Supervisor, remote: Remote | None = None, give: Give | None = None
    ) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.store = Store(layout, remote)
        self._give = give
        self.making = Making(layout, self.store)

    # -- seeing ------------------------------------------------------------------

    def names(self) -> set[str]:
        """Every environment that exists, by the records."""
        return files.record_names(self.layout.records(records.KIND))

    def recorded(self) -> dict[str, Record]:
        """Every environment's record: ``spec``, ``state`` and how it was made.

        :raises StateError: when one can't be understood.
        """
        return records.read(self.layout)

    def readable(self) -> tuple[dict[str, Record], dict[str, str]]:
        """The records that can be understood, and why each other can't: for what is done with each by itself."""
        return records.read_each(self.layout)

    def observe(self, about: Collection[str] | None = None, wanted: Collection[str] = ()) -> Observed:
        """Look at everything once: records, services, mounts, files, image sources. Changes nothing.

        :param about: the environments that something may be planned for, if not all.
        :param wanted: images that may have to be built.
        """
        return observe.observe(
            self.layout, self.supervisor, self.store, self.making.controllers, self.making.devices, about, wanted
        )

    def list(self) -> dict[str, Any]:
        """Per environment what :func:`observe.describe` tells: ``state``, ``health``, ``image`` and so on."""
        known, damaged = self.readable()
        around = observe.around(self.layout, self.supervisor, known, {*known, *damaged})
        return {
            name: observe.describe(self.layout, name, around, damaged.get(name, ""))
            for name in sorted({*known, *damaged})
        }

    # -- planning: pure ------------------------------------------------------------

    @staticmethod
    def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Say what has to change. See :func:`compare.plan`."""
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
        """Do the steps as one batch; what fails for one environment doesn't stop the others.

        :param purge: what is removed takes its volumes along, but for folders of the host.
        :param observed: what the steps were planned by, where the lock was held since.
        :param gone: called once the programs of all that is removed have ended.
        """
        applying = Applying(
            *(self.making, self.supervisor, steps), purge=purge, give=self._give, observed=observed, gone=gone
        )
        return applying.run()

    def plan_purge(self, names: Collection[str]) -> Plan:
        """Which volumes of these lie there, though there are no such environments any more."""
        gone = {name: volumes.kept(self.layout, name) for name in sorted(set(names) - self.names())}
        changes = {name: {"volumes": {"old": targets, "new": None}} for name, targets in gone.items() if targets}
        return Plan([Step(compare.KIND, name, "purge", change) for name, change in changes.items()])

    def apply_purge(self, steps: Sequence[Step]) -> Outcomes:
        """Remove those volumes."""
        errors = each([step.name for step in steps], lambda name: volumes.erase(self.layout, name))
        return [Outcome(step, errors.get(step.name, "")) for step in steps]

    def sweep(self) -> dict[str, str]:
        """Remove the second instances that a killed run left; return what went wrong, by name."""
        return rolling.erase(self.layout, self.supervisor, records.updating(self.layout))

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start environments that are made; return why some don't run, by name."""
        return start(self.layout, self.supervisor, names)

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop them, whatever stands in for them too, and wait until they are gone; return what went wrong, by name."""
        beside = rolling.erase(self.layout, self.supervisor, names)
        halt(self.layout, names)
        services = {runtime.service_name(name): name for name in names}
        errors = self.supervisor.stop(list(services)) if services else {}
        verdict.clear(self.layout, names)
        return {**beside, **{services[service]: error for service, error in errors.items()}}

    def withhold(self, names: Collection[str]) -> dict[str, str]:
        """Have these neither run nor be started at boot, until an apply or an operator starts them.

        :return: what went wrong, by environment.
        """
        known, _ = self.readable()
        for name in names:
            records.write(self.layout, name, msgspec.structs.replace(known[name], state="stopped"))
        return self.stop(names)

    def restore(self, without: Collection[str] = ()) -> dict[str, str]:
        """Rebuild what a reboot took (mounts, bundles, files) from the records, before the services start.

        One whose record can't be understood is left as it is.

        :param without: those that are not rebuilt: without its bundle nothing can start one.
        :return: what went wrong, by environment.
        """
        known, _ = self.readable()
        return self.making.restore({name: record for name, record in known.items() if name not in without})

    def hand_out(self, tell: Callable[[str], dict[str, bytes]]) -> dict[str, str]:
        """Show these environments the keys and the trusted certificates that there are for them now.

        :param tell: what :meth:`netspace.link.kind.Links.handed` returns.
        :return: what went wrong, by environment.
        """
        from netspace.environment import handout

        every, damaged = self.readable()
        told = {name: tell(name) for name in every}
        known = {name: record for name, record in every.items() if told[name]}
        wanted = {name: {**handout.read(self.layout, name), **told[name]} for name in known}
        failed = handout.keep(self.layout, wanted)

        def show(name: str) -> None:
            if self.layout.bundle(name).is_dir():  # else trust withholds it
                self.making.hand_out(name, known[name], wanted[name])

        return {**damaged, **failed, **each(wanted.keys() - failed.keys(), show)}

    def purge(self) -> None:
        """Remove what is left when no environment exists any more: images, mounts, empty cgroups.

        :raises NetspaceError: when there still are environments.
        """
        if names := self.names():
            raise NetspaceError(f"there still are environments: {', '.join(sorted(names))}")
        self.store.prune(())
        folder, file_systems = self.layout.run / "environments", self.layout.disks("")
        mounted = mounts.table()
        for target in mounted:
            if Path(target).is_relative_to(folder) or Path(target).is_relative_to(file_systems):
                mounts.unmount(Path(target))
        for path in sorted(file_systems.rglob("*"), reverse=True):
            path.rmdir()  # never more: volumes were mounted there
        runtime.remove_cgroups(self.layout, f"/{self.layout.instance}", mounted)
        for name in rootfs.layers(self.layout):  # of those whose record was lost
            trees.remove(self.layout.environment(name))
        states = [runtime.state(self.layout, name) for name in runtimes.names()]
        kept = (verdict.folder(self.layout), self.layout.images, self.layout.records(records.KIND))
        for left in (folder, *states, *kept):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            file_systems.rmdir()
