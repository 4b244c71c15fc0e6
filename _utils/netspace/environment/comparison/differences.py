"""Differences between a desired and an observed environment, in the form of a state's changes. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from netspace import files
from netspace.environment import record as records
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.observe import ObservedEnvironment
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import disk_sizes, injected_files
from netspace.plan import Changes
from netspace.spec import parse
from netspace.spec.types import Environment

# Keys whose change needs no restart: only the supervisor, the appraisal or Salt uses them.
LIVE = frozenset(
    {
        *("state", "restart", "stop_timeout", "settle", "attestation", "source_hash", "health", "after", "update"),
        *("target", "audit", "host", "values", "secrets", "offers", "spawns", "tenant", "delegates", "formerly"),
    }
)
# Limits that are changed in place: the kernel keeps them in cgroups.
_TUNED = ("limits:memory", "limits:cpus", "limits:io")
_HIDDEN = "(not shown)"


def differences(old: Environment, new: Environment) -> dict[str, dict[str, Any]]:
    """Return the differing keys of two declarations, except the runtime, with their old and new values."""
    if old == new:  # the usual case
        return {}
    changes = files.differences(parse.written(records.own(old)), parse.written(records.own(new)))
    # runtime_changes compares the runtimes in use, declared or by default.
    return {key: _shown(key, change) for key, change in changes.items() if key != "runtime"}


def runtime_changes(old: Runtime, new: Runtime) -> dict[str, dict[str, Any]]:
    """Return the difference between two runtimes: their names, or the settings that differ."""
    if old.name != new.name:
        return {"runtime": {"old": old.name, "new": new.name}}
    changes = files.differences(old.settings, new.settings)
    return {f"runtime:{key}": change for key, change in changes.items()}


def created(want: DesiredEnvironment) -> Changes:
    """Return the changes to show for a new environment, without defaults; the values of its variables are hidden."""
    declared = {**parse.beyond_defaults(records.own(want.spec)), "runtime": want.runtime.name}
    if "env" in declared:
        declared["env"] = dict.fromkeys(declared["env"], _HIDDEN)
    summary = {key: value for key, value in want.files_summary.items() if value}
    return {key: {"old": None, "new": value} for key, value in {**declared, **summary}.items()}


def _shown(key: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return the change, with hidden values of environment variables, since these may be secrets."""
    if key.partition(":")[0] != "env":
        return change
    return {side: None if value is None else f"({side} value)" for side, value in change.items()}


def files_changes(want: DesiredEnvironment, seen: ObservedEnvironment) -> dict[str, dict[str, Any]]:
    """Return the differing files under ``/run/netspace`` inside, without their contents, and a summary of the files."""
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


def in_place(key: str, old: Environment, new: Environment, grows: bool) -> bool:
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


def smaller(spec: Environment, seen: ObservedEnvironment) -> list[str]:
    """Return the keys of file systems that are smaller than recorded, for example after a crash or a manual change."""
    wanted = disk_sizes.sizes(spec)
    return sorted(
        key for key, there in seen.disks.items() if key in wanted and there.size < disk_sizes.whole(wanted[key])
    )
