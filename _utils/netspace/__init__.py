"""The netspace library: all logic of netspace, without Salt.

The library works on plain values and on the host. It neither imports Salt nor uses Salt's injected names, so it can be
tested, read and audited without Salt. The plugins in ``_modules``, ``_states`` and so on only call this library.

This file holds only the loader's entry points: :func:`refresh`, which every plugin calls before it imports the library,
and :func:`loader_dirs`, which Salt finds in a pip-installed netspace.
"""

from __future__ import annotations

import os
import sys
import zlib

__version__ = "0.1.0"

#: Salt's names of the plugin kinds. Pip installs each as the package ``netspace.<kind>``.
PLUGIN_KINDS = ("modules", "states", "grains", "runners", "pillar", "beacons", "engines", "resources", "output")


def _stamp(directory: str) -> tuple[int, int, int]:
    """Return the newest mtime, the number and a checksum of the library's source files under *directory*.

    The checksum covers each file's path, size and mtime, because two versions may have the same newest file.
    """
    newest = count = checksum = 0
    stack = [directory]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    info = entry.stat()
                    newest = max(newest, info.st_mtime_ns)
                    count += 1
                    checksum ^= zlib.crc32(f"{entry.path[len(directory) :]} {info.st_size} {info.st_mtime_ns}".encode())
                elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return newest, count, checksum


#: Python packages that the library needs and Salt may not include, with pip's requirement for each.
REQUIREMENTS = {
    "cryptography": "cryptography>=42",
    "dns": "dnspython>=2.3",
    "jeepney": "jeepney>=0.8",
    # joserfc 1.6 demands a newer cryptography than that of Salt's own packages with Python 3.10 (3006, 3007).
    "joserfc": "joserfc>=1.1,<2" if sys.version_info >= (3, 11) else "joserfc>=1.1,<1.6",
    "msgspec": "msgspec>=0.18",
    "pyroute2": "pyroute2>=0.7.7",
}

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
#: Newest modification time, number and checksum of the library's files, as this process loaded them.
LOADED = _stamp(_DIRECTORY)
_warned: set[str] = set()
_present: set[str] = set()


def refresh(plugin_file: str) -> None:
    """Drop this library from ``sys.modules`` if its files have changed on disk.

    After ``saltutil.sync_all``, Salt reloads plugins, but keeps the modules that they imported (salt#66354): a running
    minion would run new plugins with the old library. So every plugin starts with::

        import netspace
        netspace.refresh(__file__)

    and imports everything else by ``from netspace... import ...`` after these lines, because the name ``netspace``
    itself may still refer to the dropped library.

    If Salt synced the plugin but pip installed the library, a warning is logged once: pip's library comes first in
    ``sys.path``, and may differ from the synced one.

    :param plugin_file: the caller's ``__file__``.
    :raises ImportError: when the library's files are gone, or the library needs a Python package that is missing. Salt
        shows the message as the reason why a function is not available.
    """
    _require()
    _warn_of_two(plugin_file)
    try:
        current = _stamp(_DIRECTORY)
    except OSError as err:
        raise ImportError(f"{plugin_file}: the netspace library at {_DIRECTORY} is gone: {err}") from err
    if current == LOADED:
        return
    for name in [name for name in sys.modules if name == "netspace" or name.startswith("netspace.")]:
        del sys.modules[name]
    __import__("netspace")


def _require() -> None:
    """Check that Salt's Python has all :data:`REQUIREMENTS`.

    :raises ImportError: when a requirement is missing.
    """
    absent = [name for name in REQUIREMENTS if name not in _present and not _installed(name)]
    _present.update(REQUIREMENTS.keys() - absent)  # remember the result: every plugin asks, and the search is slow
    if not absent:
        return
    wanted = " ".join(f"'{REQUIREMENTS[name]}'" for name in absent)
    raise ImportError(
        f"netspace: Salt's Python ({sys.executable}) lacks {', '.join(absent)}; install what is missing by "
        f"'salt-call state.apply netspace.packages', or by 'salt-pip install {wanted}' "
        f"('{sys.executable} -m pip install {wanted}' where there is no salt-pip)"
    )


def _installed(name: str) -> bool:
    """Return whether the package *name* can be imported. A package that was installed a moment ago is found, too."""
    from importlib import invalidate_caches

    if _is_package(name):
        return True
    invalidate_caches()
    return _is_package(name)


def _is_package(name: str) -> bool:
    """Return whether *name* is a package.

    Salt's loader adds its folders to ``sys.path``. One folder has a module ``dns``, which Salt imports if the package
    ``dns`` isn't installed. This module must not hide the package once the package is installed.
    """
    from importlib.util import find_spec

    if name in sys.modules and not hasattr(sys.modules[name], "__path__"):
        del sys.modules[name]
    found = find_spec(name)
    return found is not None and found.submodule_search_locations is not None


def _warn_of_two(plugin_file: str) -> None:
    """Log a warning if Salt synced its own copy of the library, but the loaded library is another one.

    :param plugin_file: a plugin; the copy, if there is one, is in the same cache folder.
    """
    cache = os.path.dirname(os.path.dirname(os.path.abspath(plugin_file)))
    synced = os.path.join(cache, "utils", "netspace")
    if synced in _warned or synced == _DIRECTORY or not os.path.isfile(os.path.join(synced, "__init__.py")):
        return
    _warned.add(synced)
    import logging

    logging.getLogger(__name__).warning(
        "netspace is here twice: synced by Salt (%s) and installed by pip (%s, version %s). The synced plugins run "
        "with pip's library. Keep one: 'pip uninstall netspace' for Salt's Python, or take netspace out of "
        "file_roots and run 'saltutil.sync_all'.",
        synced,
        _DIRECTORY,
        __version__,
    )


def loader_dirs() -> dict[str, list[str]]:
    """Return the folder of each plugin kind, for Salt's ``salt.loader`` entry point.

    Salt (3003 and newer; ``salt.loader._module_dirs``) calls this function for each loader that it builds, and uses the
    folders under that loader's name: ``{"modules": [folder], ...}``. The entry point names a function, not a module:
    for a module, Salt would search the folders beside it, and an editable install has no folders there.
    """
    from importlib.util import find_spec

    found: dict[str, list[str]] = {}
    for kind in PLUGIN_KINDS:
        spec = find_spec(f"{__name__}.{kind}")
        if spec is not None and spec.submodule_search_locations:
            found[kind] = list(spec.submodule_search_locations)
    return found
