"""Refusals of declarations that conflict with this host or with its other environments. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from netspace.environment import claims
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.observe import Observed
from netspace.environment.storage import disk_sizes, mounts
from netspace.spec import checks


def impossible_order(
    desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]
) -> dict[str, str]:
    """Return an error, by name, for each environment whose ``after`` names a missing environment or makes a cycle.

    Validation finds such errors within one declaration. This function also considers environments that were declared
    separately.
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


def taken_folders(
    desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]
) -> dict[str, str]:
    """Return an error, by name, for each environment that asks for a folder of another environment.

    Validation refuses the same path twice in one declaration. This function also finds environments that were declared
    separately, and a folder that has two paths (bind mounts).
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
    """The host's folders that belong to environments, by the folders' origin (``mounts.origin``)."""

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
        """Return an error if one of *folders* is, contains or is below another environment's folder; else empty."""
        for source in folders:
            path, *above = self._upwards(source)
            hits = [self._above.get(path), *(self._given.get(folder) for folder in (path, *above))]
            for owner, its in filter(None, hits):
                return f"volume {source}: environment {owner} has {its}; give each its own folder"
        return ""

    def _upwards(self, source: str) -> list[tuple[str, str]]:
        device, path = mounts.origin(source, self._mounted)
        return [(device, str(folder)) for folder in (PurePosixPath(path), *PurePosixPath(path).parents)]


def impossible_sizes(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> dict[str, str]:
    """Return an error for each environment whose file system would have an impossible or too small size here."""
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
