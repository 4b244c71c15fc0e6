"""Return to the previous versions of environments whose updates failed on trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from netspace.environment import record as records
from netspace.environment.builder import Builder, each
from netspace.environment.container import oci_runtime
from netspace.environment.desired import KIND
from netspace.environment.health import record as verdict
from netspace.environment.record import Record
from netspace.environment.starting import start
from netspace.environment.stopping import answers, halt
from netspace.environment.storage import injected_files, mounts
from netspace.environment.update import rollout
from netspace.errors import NetspaceError, raise_any
from netspace.plan import Step
from netspace.supervision.service import Supervisor


class TakenBack(NamedTuple):
    """The result of taking back updates.

    :param errors: for each environment, the update's error, and the error of starting the previous version, if any.
    :param steps: the report of a step for each environment whose previous version runs again.
    """

    errors: Mapping[str, str]
    steps: list[Step]


def take_back(
    making: Builder,
    supervisor: Supervisor,
    trials: Mapping[str, Record],
    reasons: Mapping[str, str],
    revision: str,
    ready: Callable[[Mapping[str, Record]], Mapping[str, str]],
    mounted: Mapping[str, mounts.Mount],
) -> TakenBack:
    """Put back the previous versions of these environments, and record why the updates failed.

    :param trials: the environments' records, which contain the previous versions.
    :param reasons: why each update failed, by name.
    :param revision: the revision of the hardening that is in force.
    :param ready: a function that prepares environments with these records for their start, and returns errors by name.
    """
    from netspace.environment.update import kept_card

    layout = making.layout
    halt(layout, trials)
    errors = answers(layout, supervisor.stop, trials)
    verdict.clear(layout, trials)
    before: dict[str, Record] = {}
    told: dict[str, str] = {}
    steps: list[Step] = []

    def put_back(name: str) -> None:
        record, there = trials[name], mounts.table()
        assert record.previous is not None
        oci_runtime.delete(layout, name, there, record.runtime)
        old = record.previous
        confined = making.confinement.chosen(old.spec, old.runtime)
        content = making.render(name, old.spec, record.base, old.image, old.runtime, old.profile, confined)
        spec = msgspec.structs.replace(old.spec, state=record.spec.state)
        now = Record(
            *(spec, record.state, record.base, old.image, hashlib.sha256(content).hexdigest()),
            *(revision, record.summary, old.profile, old.runtime),
            failed=rollout.failed(record, reasons[name]),
            confined=confined,
        )
        if error := making.mount_images({old.image.digest}, there).get(old.image.digest):
            raise NetspaceError(error)
        records.write(layout, name, now)
        making.assemble(name, now)
        handed = kept_card.of(injected_files.read(layout, name), spec)
        raise_any(injected_files.keep(layout, {name: handed}))
        making.hand_out(name, now, handed)
        before[name] = now

    errors.update(each([name for name in trials if name not in errors], put_back))
    errors.update(ready(before))
    todo = [name for name in before if name not in errors]
    try:
        supervisor.define([making.service(name, before[name].spec, before[name].runtime, mounted) for name in todo])
        errors.update(start(layout, supervisor, todo, before))
    except (NetspaceError, OSError) as err:
        errors.update(dict.fromkeys(todo, str(err)))
    for name, record in trials.items():
        assert record.previous is not None
        what = f"the update was taken back, since {reasons[name]}"
        if name in errors:
            what += f"; the previous one could not be put back: {errors[name]}"
        else:
            old, new = record.previous.image.digest, record.image.digest
            kept = {"old": f"sha256:{new}", "new": f"sha256:{old}, as it was before"}
            steps.append(Step(KIND, name, "rollback", {"rolled back": kept}, reasons[name]))
        told[name] = f"{what}; it is not tried again until its declaration or its image changes"
    return TakenBack(told, steps)
