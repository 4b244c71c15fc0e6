"""Planned step for one existing environment: its differences, and the action that these need. Pure."""

from __future__ import annotations

from netspace.environment import claims, images
from netspace.environment import record as records
from netspace.environment.comparison.differences import (
    LIVE,
    differences,
    files_changes,
    in_place,
    runtime_changes,
    smaller,
)
from netspace.environment.container import unikernel
from netspace.environment.desired import KIND, DesiredEnvironment, EnvironmentChange
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.update import rolling, rollout
from netspace.plan import Step

# Why a change of another key needs a restart.
_FIXED = {
    "limits:files": "a program's limit of open files is set when it starts",
    "limits:shm": "the size of /dev/shm is set when it is mounted",
    "limits:tmp": "the size of /tmp is set when it is mounted",
    "limits:pids": "a running program can't be allowed more processes than at its start",
    "limits:disk": "a separate file system can be added, removed or shrunk only while nothing uses it",
    "init": "process 1 is chosen when the environment starts",
}


def compare(
    name: str, want: DesiredEnvironment, seen: ObservedEnvironment, source: images.Seen, observed: Observed
) -> Step | None:
    """Return the step that brings an existing environment into its desired state; None if nothing differs.

    :param source: the present state of the image's source.
    """
    record, status = seen.record, seen.status
    current, grows = observed.revision, observed.grows
    changes = differences(record.spec, want.spec)
    build = bool({"image", "kernel"} & changes.keys()) or unikernel.source(record.spec, record.runtime) != want.image
    if not build and source.identity and source.identity != record.image.identity:
        build = True
        changes["image"] = {"old": f"sha256:{record.image.digest}", "new": f"the present {want.image}"}
    old, new = (profile.digest if profile else "" for profile in (record.profile, want.profile))
    if old != new and "seccomp" not in changes:
        changes["seccomp"] = {"old": f"sha256:{old}", "new": f"sha256:{new}, as {want.spec.seccomp} has now"}
    changes.update(runtime_changes(record.runtime, want.runtime))
    # The toolstack reads all limits of a domain when it makes the domain.
    tuned = {key for key in changes if not want.runtime.outside and in_place(key, record.spec, want.spec, grows)}
    fixed = [key for key in changes if key.partition(":")[0] not in LIVE and key not in tuned]
    if record.state != want.state:
        changes["state"] = {"old": record.state, "new": want.state}
    handed = files_changes(want, seen)
    changes.update(handed)
    # A unikernel gets its files on a disk, which it may have read already.
    reread = want.spec.kernel is not None and any(key.startswith("files:") for key in handed)

    frozen = status is not None and status.state == "frozen"
    runs = frozen or (status is not None and status.state in ("running", "starting"))
    # A program that succeeded has done its work, unless it was meant to stay. A program that failed under
    # ``restart: never`` runs again only when an operator starts it.
    succeeded = status is not None and (status.state, status.exit) == ("stopped", "exit 0")
    failed = status is not None and status.state == "failed" and seen.begun
    done = not seen.halted and (
        (succeeded and not want.spec.meant_to_stay) or (failed and want.spec.restart == "never")
    )
    run = want.state == "running" or (want.state == "present" and runs)
    loose = bool(seen.unconfined)
    remade = bool(fixed) or not seen.assembled
    stop = runs and (remade or not seen.namespace or not run or reread or loose)
    # The reason why it couldn't be started, or why it ended, may be gone. So an apply that changes something starts it
    # at once, without waiting for the back-off.
    waits = status is not None and status.state == "starting"
    ended = status is not None and bool(status.exit) and want.spec.restart != "never"
    refused = waits and (not seen.begun or (ended and bool(changes)))
    # An upgrade of netspace restarts nothing: a program keeps its hardening until it is started again, and a program
    # that has done its work isn't run again.
    started = refused and run
    if record.revision != current and (stop or started or not (runs or done)):
        changes["hardening"] = {"old": record.revision, "new": current}
        fixed.append("hardening")
        stop = stop or started  # the supervisor must not start it while it is made anew
    depends = bool(fixed)
    assemble = depends or not seen.assembled
    tune = bool(tuned or seen.differing or smaller(record.spec, seen)) and not assemble
    begin = run and (stop or refused or frozen or not (runs or (done and not assemble)))
    # The present version is kept until the new one is healthy.
    trial = record.previous is not None and want.state == "running"
    previous = rollout.worth_keeping(seen, want.spec) if trial or (depends and run) else None
    # A second instance helps only if the present version works.
    alone = rolling.hindrance(want.spec) or want.single
    roll = depends and stop and begin and not trial and previous is not None and seen.namespace and not alone
    was = records.fingerprint(record.spec, record.profile, record.runtime)
    same = records.fingerprint(want.spec, want.profile, want.runtime) == was
    work = EnvironmentChange(
        *(want, record),
        build=build,
        assemble=assemble,
        stop=stop,
        start=begin,
        tune=tune,
        previous=previous,
        failed=record.failed if same and not build else None,
        rolling=roll,
    )
    unwatched = observed.unwatched if claims.watched(want.spec) else ""

    # A run was killed after it had started the environment, before it removed the halt mark.
    unnoted = seen.halted and runs and want.state == "running" and not stop

    reasons = [_FIXED[key] for key in fixed if key in _FIXED] if runs else []
    if roll:
        reasons.append("rolling update: a second instance is started beside it first")
    elif previous is not None and stop and begin and not trial:
        reasons.append(
            f"its program is stopped before the new one is started: {alone or 'its network namespace is replaced'}"
        )
    if not seen.assembled:
        reasons.append("its root, a file system of its own or its configuration is missing or damaged")
    elif not assemble and (off := [*seen.differing, *smaller(record.spec, seen)]):
        reasons.append(f"these limits differ from the declaration: {', '.join(off)}")
    if unnoted and not changes:
        reasons.append("it runs, but its record says that it is stopped")
    if trial:
        reasons.append("its last update is still on trial")
    if unwatched:
        reasons.append(unwatched)
    if stop and reread and not assemble:
        reasons.append("a kernel reads its files only when it starts")
    if not seen.namespace:
        reasons.append("its network namespace was replaced")
    if loose and not assemble:
        reasons.append(seen.unconfined)
    if status is None:
        reasons.append("its service is not defined")
    elif not seen.service and not changes:
        reasons.append("its service is not defined as it was declared")
    elif refused and begin and not stop:
        reasons.append(f"its last start failed, and is tried again: {seen.problem}")
    elif frozen and begin and not stop:
        reasons.append(f"it is frozen: {seen.problem}")
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
    elif changes or tune or status is None or not seen.service or unnoted or trial or unwatched or loose:
        action = "update"
    else:
        return None
    return Step(KIND, name, action, changes, "; ".join(reasons), work)


def untrusted_update(name: str, want: DesiredEnvironment, seen: ObservedEnvironment) -> Step | None:
    """Plan the only step that is allowed if the host lacks trust: update the record and ``environment.json``."""
    if want.spec.kernel is not None:  # A kernel reads its card when it starts: until then the change stays pending.
        return None
    changes = {**differences(seen.record.spec, want.spec), **files_changes(want, seen)}
    work = EnvironmentChange(want, seen.record, failed=seen.record.failed)
    return Step(KIND, name, "update", changes, data=work) if changes else None
