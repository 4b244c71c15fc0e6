"""Notes of trials: environments that an audit makes for a while (:mod:`netspace.host.trial_environments`).

A note with their names is written before they are made, and removed after they are gone. So the next run can remove the
environments of a killed audit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import files
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.host.parts import Parts

KIND = "trials"
INSIDE = "/netspace-audit"  # the folder of the kit in an environment of a trial


def note(layout: Layout, token: str, names: Collection[str]) -> None:
    """Write the note of a trial. Call this function before any of its environments is made."""
    files.write_json(_path(layout, token), {"environments": sorted(names)})


def noted(layout: Layout) -> dict[str, list[str]]:
    """Return the names of each trial's environments, by the trial's token."""
    found = files.read_records(layout.records(KIND))
    return {token: [str(name) for name in content["environments"]] for token, content in found.items()}


def forget(host: Parts, token: str) -> None:
    """Remove a trial's image, and then its note. Call this function after its environments are gone."""
    from netspace.environment import execute
    from netspace.environment.storage import mounts

    layout, store = host.layout, host.environments.store
    made = root(layout, token)
    for one in store.notes():
        if one.image == image(made):
            store.remove(one.digest)
    mounts.unmount(made / INSIDE[1:])
    for left in (made / INSIDE[1:], made, made.parent):
        with contextlib.suppress(OSError):  # absent, or another audit's
            left.rmdir()
    execute.sweep(layout)
    files.remove(_path(layout, token))


def _path(layout: Layout, token: str) -> Path:
    return layout.records(KIND) / f"{token}.json"


def root(layout: Layout, token: str) -> Path:
    """Return the folder that becomes the image of a trial's environments."""
    return layout.run / "kits" / f"audit-{token}"


def image(folder: Path) -> str:
    """Return the image source (``dir:...``) with which the environments declare this folder as their image."""
    return f"dir:{folder}"
