"""Comparison of the desired environments with the observed ones; the result is a list of steps. Pure.

Each step is due to a difference, which the step names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from netspace.environment import images
from netspace.environment import record as records
from netspace.environment.comparison.differences import created
from netspace.environment.comparison.notes import outdated, oversubscribed, problems, unconfined, unslowed, why_down
from netspace.environment.comparison.refusals import impossible_order, impossible_sizes, taken_folders
from netspace.environment.comparison.steps import compare, untrusted_update
from netspace.environment.container import apparmor, unikernel
from netspace.environment.desired import KIND, DesiredEnvironment, EnvironmentChange
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.record import Failed
from netspace.plan import Plan, Refusal, Step


def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
    """Plan the steps: ``create``, ``restart``, ``change``, ``start``, ``stop``, ``update``, ``remove``.

    - ``restart`` names the changed keys that need the restart.
    - ``change`` names the changed keys of an environment that doesn't run.
    - ``update`` changes an environment without a restart.

    An environment is refused, and left unchanged, if its declaration can't be met: because of a folder of another
    environment, an unreadable system call profile, a runtime or an init that this host lacks, an impossible ``after``,
    an impossible size of a file system, or an image that can't be built.
    """
    steps = [Step(KIND, name, "remove") for name in sorted(remove) if name in observed.claims]
    notes = []
    if desired and (unkept := [key for key in observed.unkept if key != "io"]):
        limits = ", ".join(unkept)
        notes.append(f"environments run without these limits, since this host has no cgroup controller: {limits}")
    refused = {name: want.profile.error for name, want in desired.items() if want.profile and want.profile.error}
    refused |= {
        name: f"netspace:environments:{name}:runtime: {want.runtime.name} can't be used here: {want.runtime.error}"
        for name, want in desired.items()
        if want.runtime.error
    }
    refused |= {
        name: f"netspace:environments:{name}:init: {observed.initless}"
        for name, want in desired.items()
        if want.spec.init and observed.initless
    }
    refused |= {
        name: f"netspace:environments:{name}:apparmor: {why}"
        for name, want in desired.items()
        if want.spec.apparmor == "require" and (why := apparmor.lacking(want.runtime) or observed.confining.problem)
    }
    refused |= taken_folders(desired, observed, remove)
    refused |= impossible_order(desired, observed, remove)
    refused |= impossible_sizes(desired, observed)
    refused |= {
        name: f"image {want.image}: {message}"
        for name, want in desired.items()
        if name in observed.environments
        and (message := images.mismatch(_source(want, observed).identity, want.spec.source_hash or ""))
    }
    refused |= {
        name: f"image {want.image}: {why}"
        for name, want in desired.items()
        if _builds(want, observed.environments.get(name))
        and (why := observed.missing.get(want.image) or _source(want, observed).error)
    }
    refused |= {name: why for name, why in observed.programless.items() if name in desired and name not in refused}
    notes += unslowed(desired, observed)
    notes += unconfined(desired, observed)
    notes += oversubscribed(desired, observed, remove)
    for name in sorted(observed.updating):
        notes.append(f"environment {name} has a second instance: a killed run left it, and the next run removes it")
    for name in sorted(observed.unrecorded - desired.keys() - set(remove)):
        notes.append(
            f"environment {name} has a layer, but no record; declare the environment to use the layer again; "
            "to delete the layer, declare the environment and then remove it"
        )
    taken_back: dict[str, str] = {}
    down: dict[str, str] = {}
    for name, want in desired.items():
        if name in refused:
            continue
        seen = observed.environments.get(name)
        source = _source(want, observed)
        noted = problems(name, seen, observed.now) if seen is not None else []
        if seen is not None and (failed := _failed_before(want, seen, observed)) is not None:
            taken_back[name] = (
                f"the update to sha256:{failed.digest[:12]} was taken back, since {failed.reason}; it is not tried "
                "again until its declaration or its image changes, or netspace_environment.retry is called"
            )
            # The previous version was put back: keep it as recorded.
            was = seen.record
            spec = msgspec.structs.replace(was.spec, state=want.spec.state)
            from netspace.environment.update import kept_card  # few updates fail

            handed = kept_card.of(want.files, spec)
            want = msgspec.structs.replace(want, spec=spec, files=handed, profile=was.profile, runtime=was.runtime)
            source = images.Seen()
        if want.profile and want.profile.dangers:
            notes.append(
                f"environment {name}: {want.spec.seccomp} allows what no profile of netspace allows: "
                + ", ".join(want.profile.dangers)
            )
        if seen is None:
            run = want.state == "running"
            work = EnvironmentChange(want, None, build=True, assemble=True, start=run)
            lost = "its record was lost; its layer is kept" if name in observed.unrecorded else ""
            steps.append(Step(KIND, name, "create", created(want), lost, work))
            continue
        if source.error:
            notes.append(f"environment {name} keeps its present image: {source.error}")
        step = compare(name, want, seen, source, observed)
        if step is not None and want.kept and step.action != "update":
            why = "; ".join(filter(None, (", ".join(step.changes), step.reason)))
            notes.append(f"environment {name}: its {step.action} waits until the host has the required trust ({why})")
            step = untrusted_update(name, want, seen)
        if step is not None:
            steps.append(step)
        if step is None or not step.data.start:  # a program that is started again has none of them yet
            notes += noted
        if (why := why_down(want, seen, step, observed.now)) and name not in taken_back:
            down[name] = why
    notes += outdated(observed, steps)
    refusals = [Refusal(KIND, name, message) for name, message in {**refused, **taken_back, **down}.items()]
    return Plan(steps, refusals, notes)


def _builds(want: DesiredEnvironment, seen: ObservedEnvironment | None) -> bool:
    """Return whether an environment is new, or has another image source than its record."""
    return seen is None or unikernel.source(seen.record.spec, seen.record.runtime) != want.image


def _failed_before(want: DesiredEnvironment, seen: ObservedEnvironment, observed: Observed) -> Failed | None:
    """Return the update that was rolled back, if declaration and image are still the same; otherwise None."""
    failed = seen.record.failed
    if failed is None or records.fingerprint(want.spec, want.profile, want.runtime) != failed.declared:
        return None
    source = observed.sources.get(failed.source, images.Seen())
    return failed if source.identity in ("", failed.identity) else None


def _source(want: DesiredEnvironment, observed: Observed) -> images.Seen:
    return observed.sources.get(want.image, images.Seen())
