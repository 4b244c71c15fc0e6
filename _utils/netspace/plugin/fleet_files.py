"""A fleet's declaration, read by Salt's file server and renderers. The plugins pass these; Salt isn't imported here.

A declaration is compiled once for all minions, at the first minion's request. So it is rendered without anything of
that minion: no grains, no pillar, no id. If it were rendered with them, a minion could decide by its grains how other
minions are configured.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet.declaration import FOLDER, SALT, FleetDeclaration, Sources
from netspace.fleet.in_force import Refusal

log = logging.getLogger(__name__)

_SERVERS: dict[str, Any] = {}
_REFUSED = "every minion can read this file; name a file outside of file_roots, or set netspace.fleet: {served: true}"
_OF_MINION = ("grains", "pillar", "minion_id", "id", "pillarenv", "saltenv", "pillar_override")


def declaration(
    opts: Mapping[str, Any],
    file: str,
    fileserver: Callable[[dict[str, Any]], Any],
    renderers: Callable[..., Any],
    template: Callable[..., Any],
    event: Callable[..., Any],
) -> FleetDeclaration:
    """Return the declaration that begins in *file*.

    :param opts: the master's configuration.
    :param fileserver: ``salt.fileserver.Fileserver``.
    :param renderers: ``salt.loader.render``.
    :param template: ``salt.template.compile_template``.
    :param event: ``salt.utils.event.get_event``.
    :raises NetspaceError: the configuration is wrong, or every minion could read the file.
    """
    folders = _served_folders(opts)
    if reason := "" if folders is None else _REFUSED if file.startswith(SALT) else _exposed(folders, file):
        raise NetspaceError(f"ext_pillar: netspace: {file:.200}: {reason}")
    clean = without_minion(opts)

    def find(name: str) -> str | None:
        found = _served(fileserver, clean).find_file(name.removeprefix(SALT), "base")
        return str(found["path"]) or None

    def render(path: str) -> Any:
        pipe = clean.get("renderer", "jinja|yaml")
        lists = clean.get("renderer_blacklist"), clean.get("renderer_whitelist")
        return template(path, renderers(clean, {}), pipe, *lists)

    def tell(refusal: Refusal) -> None:
        for where in refusal.problems:
            log.error("netspace: the fleet's declaration is refused: %s", ": ".join(filter(None, where)))
        with contextlib.suppress(Exception):  # a masterless minion has no bus; the log has it in any case
            data = {"problems": [list(one) for one in refusal.problems[:20]], "count": refusal.count}
            with event("master", opts=dict(opts), listen=False) as bus:
                bus.fire_event(data, "netspace/fleet/refused")

    def exposed(path: str) -> str:
        return "" if folders is None else _exposed(folders, path)

    nodegroups = opts.get("nodegroups") or {}
    sources = Sources(find, render, tell, exposed, repr(folders))
    return FleetDeclaration(file, folder(opts), sources, nodegroups)


def without_minion(opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the master's configuration, as Salt passes it for one minion, without anything of that minion."""
    clean = {key: value for key, value in opts.items() if key not in _OF_MINION}
    return {**clean, "grains": {}, "pillar": {}, "id": "master"}


def _served(fileserver: Callable[[dict[str, Any]], Any], opts: dict[str, Any]) -> Any:
    """Return this process's file server for a configuration. It is kept, because making one is slow."""
    key = repr([(name, opts.get(name)) for name in ("conf_file", "cachedir", "file_roots", "fileserver_backend")])
    if key not in _SERVERS:
        _SERVERS[key] = fileserver(opts)
    return _SERVERS[key]


def folder(opts: Mapping[str, Any]) -> Path:
    """Return the folder of the master's data about the fleet (``netspace.fleet: {folder: ...}``).

    :param opts: the master's configuration.
    :raises NetspaceError: the configuration is wrong.
    """
    path = Path(_settings(opts).get("folder", FOLDER))
    if not path.is_absolute():
        raise NetspaceError(f"master configuration: netspace.fleet:folder: {path}: expected an absolute path")
    return path


def _settings(opts: Mapping[str, Any]) -> Mapping[str, Any]:
    given = opts.get("netspace.fleet") or {}
    if not isinstance(given, Mapping) or set(given) - {"folder", "served"}:
        raise NetspaceError("master configuration: netspace.fleet: expected only folder and served")
    if not isinstance(given.get("folder", FOLDER), str) or not isinstance(given.get("served", False), bool):
        raise NetspaceError("master configuration: netspace.fleet: expected a path as folder, true or false as served")
    return given


def _served_folders(opts: Mapping[str, Any]) -> list[str] | None:
    """Return the folders that Salt's file server serves to every minion.

    The result is None if the operator allows files of the declaration in these folders, too (``netspace.fleet: {served:
    true}``).
    """
    if _settings(opts).get("served", False):
        return None
    return [str(one) for listed in (opts.get("file_roots") or {}).values() for one in listed]


def _exposed(folders: Iterable[str], file: str) -> str:
    """Return why a file must not be part of the declaration; empty if it may be.

    A file is refused if it is in one of *folders*, which all minions can read.
    """
    real = os.path.realpath(file)
    return _REFUSED if any(real.startswith(f"{os.path.realpath(one).rstrip('/')}/") for one in folders) else ""


def root(opts: Mapping[str, Any]) -> str:
    """Return the first file of the fleet's declaration, as ``ext_pillar`` of the master's configuration names it.

    :raises NetspaceError: the configuration names no such file, or several.
    """
    listed = opts.get("ext_pillar") or []
    found = [one["netspace"] for one in listed if isinstance(one, Mapping) and "netspace" in one]
    if len(found) != 1 or not isinstance(found[0], str):
        remedy = "add '- netspace: /srv/fleet/fleet.yaml', once, under ext_pillar"
        raise NetspaceError(f"master configuration: ext_pillar: no fleet's file is named; {remedy}")
    return found[0]
