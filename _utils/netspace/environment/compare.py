"""What is asked of environments, compared with what was found: the steps. Pure.

Only a difference makes a step, and the step names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace import files
from netspace.environment import handout, images, records
from netspace.environment.observe import Observed, Seen
from netspace.environment.records import Record, RunState
from netspace.environment.seccomp_file import Profile
from netspace.plan import Changes, Plan, Refusal, Step
from netspace.spec import parse
from netspace.spec.check import within
from netspace.spec.types import Environment

KIND = "environment"

# Keys whose change needs no restart: what they say matters to the supervisor or the appraisal alone.
_LIVE = frozenset({"restart", "stop_timeout", "attestation"})
_HIDDEN = "(not shown)"


@dataclass(frozen=True)
class DesiredEnvironment:
    """What one environment shall be.

    :param spec: its ``attestation`` is the requirement in force, the host's own where it has none:
        it is recorded, for those who start it without the declaration.
    :param files: appear under ``/run/netspace`` inside; may hold secrets.
    :param files_summary: what to show in changes when the files differ; no secrets.
    :param state: ``running``; ``present``: there, and left running or stopped as it is;
        ``stopped``: there, and not running.
    :param profile: the operator's own system call profile; None where it is one of ours.
    """

    spec: Environment
    files: Mapping[str, bytes] = field(default_factory=dict)
    files_summary: Mapping[str, Any] = field(default_factory=dict)
    state: RunState = "running"
    profile: Profile | None = None


@dataclass(frozen=True)
class Work:
    """What a step's ``apply`` has to do, decided by the plan."""

    want: DesiredEnvironment
    record: Record | None
    build: bool = False
    assemble: bool = False
    stop: bool = False
    start: bool = False


def plan(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str] = ()) -> Plan:
    """Say what has to change: ``create``, ``restart``, ``change``, ``start``, ``stop``, ``update``, ``remove``.

    ``restart`` names exactly the keys that need it. ``change`` is the same for one that
    doesn't run, ``update`` for what is changed without a restart. A folder that belongs to
    another environment is refused, and then nothing of the one that asked for it changes;
    so is a system call profile that can't be read.
    """
    steps = [Step(KIND, name, "remove") for name in sorted(remove) if name in observed.environments]
    notes = []
    if desired and observed.unkept:
        limits = ", ".join(observed.unkept)
        notes.append(f"environments run without these limits, since this host has no cgroup controller: {limits}")
    refused = {name: want.profile.error for name, want in desired.items() if want.profile and want.profile.error}
    refused |= _taken(desired, observed, remove)
    for name, want in desired.items():
        if name in refused:
            continue
        if want.profile and want.profile.dangers:
            notes.append(
                f"environment {name}: {want.spec.seccomp} lets through what no profile of netspace does: "
                + ", ".join(want.profile.dangers)
            )
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
    return Plan(steps, [Refusal(KIND, name, message) for name, message in refused.items()], notes)


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
    old, new = (profile.digest if profile else "" for profile in (record.profile, want.profile))
    if old != new and "seccomp" not in changes:
        changes["seccomp"] = {"old": f"sha256:{old}", "new": f"sha256:{new}, what {want.spec.seccomp} is now"}
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
