"""The netspace library: all logic, no Salt.

Everything here works on plain values and on the host; nothing imports Salt or
uses its injected names, so it can be tested, read and audited without Salt.
The plugins in ``_modules``, ``_states`` and so on are thin and call this.

This file holds only what the loader needs: :func:`refresh`, which every plugin
calls before it imports the library, and :func:`loader_dirs`, the entry point
that Salt finds in a pip-installed netspace.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__version__ = "0.1.0"

# Plugin kinds as Salt names them, and the package each is installed as by pip.
PLUGIN_KINDS = {
    "module": "modules",
    "states": "states",
    "grains": "grains",
    "runner": "runners",
    "pillar": "pillar",
    "beacons": "beacons",
    "engines": "engines",
}


def _stamp(directory: str) -> tuple[int, int]:
    """Newest mtime and number of the library's source files under *directory*."""
    newest = count = 0
    stack = [directory]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        stack.append(entry.path)
                elif entry.name.endswith(".py"):
                    newest = max(newest, entry.stat().st_mtime_ns)
                    count += 1
    return newest, count


_LOADED = _stamp(os.path.dirname(__file__))


def refresh(plugin_file: str) -> None:
    """Drop this library from ``sys.modules`` when its files changed on disk.

    Salt reloads plugins after ``saltutil.sync_all`` but keeps what they
    imported (salt#66354): a running minion would run new plugins with the old
    library. Every plugin therefore starts with::

        import netspace
        netspace.refresh(__file__)

    :param plugin_file: the caller's ``__file__``; only used to tell in an error
        which plugin was loading.
    """
    directory = os.path.dirname(__file__)
    try:
        current = _stamp(directory)
    except OSError as err:
        raise ImportError(f"{plugin_file}: the netspace library at {directory} is gone: {err}") from err
    if current == _LOADED:
        return
    for name in [n for n in sys.modules if n == "netspace" or n.startswith("netspace.")]:
        del sys.modules[name]
    __import__("netspace")


def loader_dirs() -> dict[str, list[str]]:
    """Return the folder of each plugin kind, for Salt's ``salt.loader`` entry point.

    Called by Salt when netspace is installed by pip. Returns an empty mapping
    when the library was synced by Salt instead: then Salt knows the folders.
    """
    found: dict[str, list[str]] = {}
    for kind, package in PLUGIN_KINDS.items():
        try:
            module = __import__(f"netspace.{package}", fromlist=["__path__"])
        except ImportError:
            continue
        directory = next(iter(module.__path__), None)
        if directory and Path(directory).is_dir():
            found[f"{kind}_dirs"] = [directory]
    return found
