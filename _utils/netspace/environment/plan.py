"""Comparison of the desired environments with the observed ones, which results in steps. Pure.

Only a difference makes a step, and the step names it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from netspace import files
from netspace.environment import claims, images
from netspace.environment import record as records
from netspace.environment.container import apparmor, unikernel
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.record import Failed, Previous, Record, RunState
from netspace.environment.runtimes import USUAL, Runtime
from netspace.environment.storage import disk_sizes, injected_files, mounts
from netspace.environment.update import rolling, rollout
from netspace.plan import Changes, Plan, Refusal, Step
from netspace.spec import checks, parse
from netspace.spec.types import Environment, Io
from netspace.supervision import restart_policy

KIND = "environment"

# Keys whose change needs no restart: only the supervisor, the appraisal or Salt uses them.
_LIVE = frozenset(
    {
        *("state", "restart", "stop_timeout", "settle", "attestation", "source_hash", "health", "after", "update"),
        *("target", "audit", "host", "values", "offers"),
    }
)
# Limits that are changed in place: the kernel keeps them in cgroups.
_TUNED = ("limits:memory", "limits:cpus", "limits:io")
# Why a change of another key needs a restart.
_FIXED = {
    "limits:files": "a program's limit of open files is set when it starts",
    "limits:shm": "the size of /dev/shm is set when it is mounted",
    "limits:tmp": "the size of /tmp is set when it is mounted",
    "limits:pids": "a running program can't be allowed more processes than at its start",
    "limits:disk": "a file system of its own is given, taken or made smaller only while nothing uses it",
    "init": "process 1 is chosen when the environment starts",
}
_HIDDEN = "(not shown)"


class DesiredEnvironment(msgspec.Struct, frozen=True):
    """The desired configuration and state of one environment.

    :param spec: the declaration. Its ``attestation`` is the requirement in force, by default the host's. It is
        recorded, since an operator's start has no declaration.
    :param files: the files under ``/run/netspace`` inside, by name; may hold secrets.
    :param files_summary: the values to show in changes when the files differ; no secrets.
    :param state: ``running``; ``present``: it exists, and is left running or stopped;
        ``stopped``: it exists, and doesn't run.
    :param profile: the operator's own system call profile; None for a built-in one.
    :param runtime: the runtime to run it with.
    :param single: why it can't have a second instance, apart from reasons that *spec* gives; empty if it can.
    :param kept: the host lacks trust for it now, so no change stops or rebuilds it.
    """

    spec: Environment
    files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    files_summary: Mapping[str, Any] = msgspec.field(default_factory=dict)
    state: RunState = "running"
    profile: Profile | None = None
    runtime: Runtime = USUAL
    single: str = ""
    kept: bool = False

    @property
    def image(self) -> str:
        """The image source of the environment's root."""
        return unikernel.source(self.spec, self.runtime)

    @property
    def sized(self) -> bool:
        """Whether the environment has file systems of its own."""
        return bool(disk_sizes.sizes(self.spec))


class EnvironmentChange(msgspec.Struct, frozen=True):
    """The work of one step, decided by the plan and done by ``apply``.

    :param previous: the version to put back if the update does not become healthy.
    :param failed: the update that was taken back, if the declaration still asks for it.
    :param rolling: a second instance is started beside the running one first.
    """

    want: DesiredEnvironment
    record: Record | None
    build: bool = False
    assemble: bool = False
    stop: bool = False
    start: bool = False
    tune: bool = False
    previous: Previous | None = None
    failed: Failed | None = None
    rolling: bool = False


def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
    """Plan the steps: ``create``, ``restart``, ``change``, ``start``, ``stop``, ``update``, ``remove``.

    A ``restart`` names the keys that need it. A ``change`` names them for an environment that doesn't run.
    An ``update`` changes an environment without a restart. An environment is refused, and left unchanged,
    if it asks for something that is not available: a folder of another environment, an unreadable system
    call profile, a runtime or an init that this host lacks, an impossible ``after``, a file system of
    that size or an image.
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
    refused |= _taken(desired, observed, remove)
    refused |= _unordered(desired, observed, remove)
    refused |= _bounded(desired, observed)
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
    notes += _unslowed(desired, observed)
    notes += _unconfined(desired, observed)
    notes += _promised(desired, observed, remove)
    for name in sorted(observed.updating):
        notes.append(
            f"environment {name} has a second instance: a run that was killed left it, the next one removes it"
        )
    for name in sorted(observed.unrecorded - desired.keys() - set(remove)):
        notes.append(
            f"environment {name} has no record, but there is a layer of it; declare it to have it back, "
            "or declare and remove it to be rid of it"
        )
    taken_back: dict[str, str] = {}
    down: dict[str, str] = {}
    for name, want in desired.items():
        if name in refused:
            continue
        seen = observed.environments.get(name)
        source = _source(want, observed)
        if seen is not None:
            notes += _ails(name, seen, observed.now)
        if seen is not None and (failed := _failed_before(want, seen, observed)) is not None:
            taken_back[name] = (
                f"the update to sha256:{failed.digest[:12]} was taken back, since {failed.reason}; it is not tried "
                "again until its declaration or its image changes, or netspace_environment.retry says so"
            )
            # The previous version was put back: keep it as recorded.
            was = seen.record
            spec = msgspec.structs.replace(was.spec, state=want.spec.state)
            want = msgspec.structs.replace(want, spec=spec, profile=was.profile, runtime=was.runtime)
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
            steps.append(Step(KIND, name, "create", _created(want), lost, work))
            continue
        if source.error:
            notes.append(f"environment {name} keeps the image it has: {source.error}")
        step = _compare(name, want, seen, source, observed)
        if step is not None and want.kept and step.action != "update":
            why = "; ".join(filter(None, (", ".join(step.changes), step.reason)))
            notes.append(f"environment {name}: its {step.action} waits for trust ({why})")
            step = _told(name, want, seen)
        if step is not None:
            steps.append(step)
        if (why := _down(want, seen, step, observed.now)) and name not in taken_back:
            down[name] = why
    refusals = [Refusal(KIND, name, message) for name, message in {**refused, **taken_back, **down}.items()]
    return Plan(steps, refusals, notes)


def _builds(want: DesiredEnvironment, seen: ObservedEnvironment | None) -> bool:
    """Return whether an environment needs an image that it does not have."""
    return seen is None or unikernel.source(seen.record.spec, seen.record.runtime) != want.image


def _failed_before(want: DesiredEnvironment, seen: ObservedEnvironment, observed: Observed) -> Failed | None:
    """Return the update that was taken back, if the declaration and the image are still the same; else None."""
    failed = seen.record.failed
    if failed is None or records.fingerprint(want.spec, want.profile, want.runtime) != failed.declared:
        return None
    source = observed.sources.get(failed.source, images.Seen())
    return failed if source.identity in ("", failed.identity) else None


def _ails(name: str, seen: ObservedEnvironment, now: float) -> list[str]:
    """Return notes for the operator on an existing environment's problems: out of memory, unhealthy, flapping."""
    found = []
    status = seen.status
    if status is not None and status.exit == "oom":
        bound = seen.record.spec.limits.memory
        found.append(f"environment {name} was last killed for want of memory (limits:memory {bound})")
    elif status is not None and status.oom_kills:
        found.append(
            f"environment {name}: {status.oom_kills} of its processes were killed for want of memory "
            f"(limits:memory {seen.record.spec.limits.memory})"
        )
    if seen.verdict is not None and seen.verdict.judgement.state == "unhealthy":
        detail = seen.verdict.judgement.detail
        found.append(f"environment {name} is unhealthy{': ' + detail if detail else ''}")
    if status is not None and restart_policy.flapping(status.state, status.restarts, status.since, now):
        how = f" ({seen.problem or status.exit})" if seen.problem or status.exit else ""
        found.append(f"environment {name} is flapping: it ended and was restarted {status.restarts} times{how}")
    return found


def _down(want: DesiredEnvironment, seen: ObservedEnvironment, step: Step | None, now: float) -> str:
    """Return why an environment is down although it should run, if this plan doesn't start it; else an empty text."""
    status = seen.status
    if status is None or want.state != "running" or want.kept or (step is not None and step.data.start):
        return ""
    if status.state == "failed":
        return (
            f"it does not run: {seen.problem}; with restart: never it is run again only by netspace_environment.start, "
            "or by a change that needs a restart"
        )
    if status.state != "starting" or not seen.problem:
        return ""
    if restart_policy.flapping(status.state, status.restarts, status.since, now):
        return f"it does not run: {seen.problem}; it is started again and again ({status.restarts} times by now)"
    return "" if status.exit else f"it does not run: {seen.problem}"


def _unordered(
    desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]
) -> dict[str, str]:
    """Return the error, by name, of each environment whose ``after`` names a missing one or makes a circle.

    Validation finds this within one declaration; here also environments that were declared separately count.
    """
    if not any(want.spec.after for want in desired.values()):
        return {}
    after = {name: its.after for name, its in observed.claims.items() if name not in remove}
    after |= {name: want.spec.after for name, want in desired.items()}
    refused = {
        name: f"after: there is no environment {missing[0]}"
        for name, want in desired.items()
        if (missing := [other for other in want.spec.after if other not in after])
    }
    if found := checks.circle({name: others for name, others in after.items() if others}):
        text = f"after: they would wait for each other: {' after '.join(found)}"
        refused |= {name: text for name in found if name in desired}
    return refused


def _source(want: DesiredEnvironment, observed: Observed) -> images.Seen:
    return observed.sources.get(want.image, images.Seen())


def _taken(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]) -> dict[str, str]:
    """Return the error, by name, of each environment that asks for a folder which another environment keeps.

    Validation refuses the same path twice in one declaration. This function also finds environments
    that were declared separately, and one folder under two names (bind mounts).
    """
    refused: dict[str, str] = {}
    if not any(claims.folders(want.spec) for want in desired.values()):
        return refused
    while True:
        # A refused environment keeps its present folders, which can be the reason to refuse another one.
        kept = _Folders(observed.mounted)
        for owner, its in observed.claims.items():
            if owner not in remove and (owner not in desired or owner in refused):
                kept.add(owner, its.folders)
        found: dict[str, str] = {}
        for name, want in desired.items():
            if name not in refused:
                folders = claims.folders(want.spec)
                if message := kept.taken(folders):
                    found[name] = message
                else:
                    kept.add(name, folders)
        if not found:
            return refused
        refused.update(found)


class _Folders:
    """The host's folders that are given to environments, by their origin (``mounts.origin``)."""

    def __init__(self, mounted: Mapping[str, mounts.Mount]) -> None:
        self._mounted = mounted
        self._given: dict[tuple[str, str], tuple[str, str]] = {}
        self._above: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, owner: str, folders: Iterable[str]) -> None:
        for source in folders:
            path, *above = self._upwards(source)
            self._given.setdefault(path, (owner, source))
            for folder in above:
                self._above.setdefault(folder, (owner, source))

    def taken(self, folders: Iterable[str]) -> str:
        """Return the error if another environment has one of *folders*, or a folder below or above one; else empty."""
        for source in folders:
            path, *above = self._upwards(source)
            hits = [self._above.get(path), *(self._given.get(folder) for folder in (path, *above))]
            for owner, its in filter(None, hits):
                return f"volume {source}: environment {owner} has {its}; give each its own folder"
        return ""

    def _upwards(self, source: str) -> list[tuple[str, str]]:
        device, path = mounts.origin(source, self._mounted)
        return [(device, str(folder)) for folder in (PurePosixPath(path), *PurePosixPath(path).parents)]


def _compare(
    name: str, want: DesiredEnvironment, seen: ObservedEnvironment, source: images.Seen, observed: Observed
) -> Step | None:
    record, status = seen.record, seen.status
    current, grows = observed.revision, observed.grows
    changes = _differences(record.spec, want.spec)
    build = bool({"image", "kernel"} & changes.keys()) or unikernel.source(record.spec, record.runtime) != want.image
    if not build and source.identity and source.identity != record.image.identity:
        build = True
        changes["image"] = {"old": f"sha256:{record.image.digest}", "new": f"what {want.image} is now"}
    old, new = (profile.digest if profile else "" for profile in (record.profile, want.profile))
    if old != new and "seccomp" not in changes:
        changes["seccomp"] = {"old": f"sha256:{old}", "new": f"sha256:{new}, what {want.spec.seccomp} is now"}
    changes.update(_runtime_changes(record.runtime, want.runtime))
    if record.revision != current:
        changes["hardening"] = {"old": record.revision, "new": current}
    tuned = {key for key in changes if _tuned(key, record.spec, want.spec, grows)}
    fixed = [key for key in changes if key.partition(":")[0] not in _LIVE and key not in tuned]
    depends = bool(fixed)
    if record.state != want.state:
        changes["state"] = {"old": record.state, "new": want.state}
    handed = _files_changes(want, seen)
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
    assemble = depends or not seen.assembled
    tune = bool(tuned or seen.differing or _smaller(record.spec, seen)) and not assemble
    loose = bool(seen.unconfined)
    stop = runs and (assemble or not seen.namespace or not run or reread or loose)
    # The reason why it couldn't be started, or why it ended, may be gone. So an apply that changes something starts it
    # at once, without waiting for the back-off.
    waits = status is not None and status.state == "starting"
    ended = status is not None and bool(status.exit) and want.spec.restart != "never"
    refused = waits and (not seen.begun or (ended and bool(changes)))
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
    unwatched = not observed.watched and claims.watched(want.spec)

    # A run was killed after it had started the environment, before it removed the halt mark.
    unnoted = seen.halted and runs and want.state == "running" and not stop

    reasons = [_FIXED[key] for key in fixed if key in _FIXED] if runs else []
    if roll:
        reasons.append("rolling: the new one is started beside it first")
    elif previous is not None and stop and begin and not trial:
        reasons.append(f"it is stopped before the new one is started: {alone or 'its network namespace is replaced'}")
    if not seen.assembled:
        reasons.append("its root, a file system of its own or its configuration is missing or damaged")
    elif not assemble and (off := [*seen.differing, *_smaller(record.spec, seen)]):
        reasons.append(f"not as it was declared: {', '.join(off)}")
    if unnoted and not changes:
        reasons.append("it is noted as stopped")
    if trial:
        reasons.append("its last update is still on trial")
    if unwatched:
        reasons.append("the service that watches its health does not run as it should")
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
        reasons.append(f"it is tried again: {seen.problem}")
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


def _told(name: str, want: DesiredEnvironment, seen: ObservedEnvironment) -> Step | None:
    """Plan the only step that is allowed without trust: an update of the environment's record and card."""
    if want.spec.kernel is not None:  # A kernel reads its card when it starts: until then the change stays pending.
        return None
    changes = {**_differences(seen.record.spec, want.spec), **_files_changes(want, seen)}
    work = EnvironmentChange(want, seen.record, failed=seen.record.failed)
    return Step(KIND, name, "update", changes, data=work) if changes else None


def _tuned(key: str, old: Environment, new: Environment, grows: bool) -> bool:
    """Return whether a changed key is a limit that is changed in place."""
    if key == "limits:pids":
        return new.limits.pids <= old.limits.pids
    if key == "limits:disk":
        before, after = old.limits.disk, new.limits.disk
        return grows and before is not None and after is not None and after >= before
    if key == "volumes":
        return (
            grows
            and len(old.volumes) == len(new.volumes)
            and all(
                msgspec.structs.replace(after, size=before.size) == before and (after.size or 0) >= (before.size or 0)
                for before, after in zip(old.volumes, new.volumes, strict=True)
            )
        )
    return key.startswith(_TUNED)


def _smaller(spec: Environment, seen: ObservedEnvironment) -> list[str]:
    """Return the keys of file systems that are smaller than recorded, after a crash or a change by hand."""
    wanted = disk_sizes.sizes(spec)
    return sorted(
        key for key, there in seen.disks.items() if key in wanted and there.size < disk_sizes.whole(wanted[key])
    )


def _bounded(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> dict[str, str]:
    """Return the error of each environment whose file system would have a size that is impossible or too small here."""
    refused = {}
    for name, want in desired.items():
        sizes = disk_sizes.sizes(want.spec)
        seen = observed.environments.get(name)
        for key, size in sizes.items():
            what = "limits:disk" if key == disk_sizes.LAYER else f"volume {key}: its size"
            if observed.unbounded:
                refused[name] = f"{what} can't be kept on this host: {observed.unbounded}"
            elif (
                seen is not None
                and (held := seen.disks.get(key)) is not None
                and (message := disk_sizes.overfull(size, held.used, held.files))
            ):
                refused[name] = f"{what}: {message}"
    return refused


def _unconfined(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> list[str]:
    """Return a note if the host has AppArmor but can't load a profile."""
    names = sorted(name for name, want in desired.items() if want.spec.apparmor == "prefer")
    why = observed.confining.told
    return [f"environments are made without an AppArmor profile ({', '.join(names)}): {why}"] if names and why else []


def _promised(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]) -> list[str]:
    """Return a note if all sizes together exceed the disk. That is no error, since few file systems are ever full."""
    if observed.budget is None:
        return []
    kept = (its.promised for name, its in observed.claims.items() if name not in remove and name not in desired)
    promised = sum(kept) + sum(size for want in desired.values() for size in disk_sizes.sizes(want.spec).values())
    if promised <= observed.budget:
        return []
    has, sizes = f"{observed.budget / 1024**3:.1f} GiB", f"{promised / 1024**3:.1f} GiB"
    return [f"layers and volumes may hold {sizes}, more than the disk has for them ({has}): a full one fails them all"]


def _unslowed(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> list[str]:
    """Return a note that names the environments whose ``limits:io`` this host can't keep."""
    names = sorted(name for name, want in desired.items() if want.spec.limits.io != Io())
    if not names or not (observed.idle or "io" in observed.unkept):
        return []
    why = "no cgroup controller" if "io" in observed.unkept else "its state folder on no disk"
    return [f"environments run without limits:io, since this host has {why}: {', '.join(names)}"]


def _differences(old: Environment, new: Environment) -> dict[str, dict[str, Any]]:
    changes = files.differences(parse.encode(records.own(old)), parse.encode(records.own(new)))
    # _runtime_changes compares the runtimes in use, declared or by default.
    return {key: _shown(key, change) for key, change in changes.items() if key != "runtime"}


def _runtime_changes(old: Runtime, new: Runtime) -> dict[str, dict[str, Any]]:
    if old.name != new.name:
        return {"runtime": {"old": old.name, "new": new.name}}
    changes = files.differences(old.settings, new.settings)
    return {f"runtime:{key}": change for key, change in changes.items()}


def _created(want: DesiredEnvironment) -> Changes:
    declared = {key: value for key, value in parse.encode(records.own(want.spec)).items() if value is not None}
    declared["runtime"] = want.runtime.name
    if declared["env"]:
        declared["env"] = dict.fromkeys(declared["env"], _HIDDEN)
    return {key: {"old": None, "new": value} for key, value in {**declared, **want.files_summary}.items()}


def _shown(key: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return the change, with the values of environment variables hidden: they may be secrets."""
    if key.partition(":")[0] != "env":
        return change
    return {side: None if value is None else f"({side} value)" for side, value in change.items()}


def _files_changes(want: DesiredEnvironment, seen: ObservedEnvironment) -> dict[str, dict[str, Any]]:
    wanted = injected_files.digests(want.files)
    if seen.files == wanted and dict(seen.record.summary) == dict(want.files_summary):
        return {}
    changes = files.differences(seen.record.summary, want.files_summary)
    for file in sorted({*wanted, *(seen.files or {})}):
        before, after = (seen.files or {}).get(file), wanted.get(file)
        if before != after:
            # Not even a digest: the content may be a secret.
            changes[f"files:{file}"] = {"old": before and "(old content)", "new": after and "(new content)"}
    return changes
