"""Addressing of Salt jobs to environments (Salt's *resources*), and patches of Salt's minion for it.

The rule: a target (an environment) runs only jobs that name it: by ``T@netspace:<id>``, alone or joined by ``or``, or
by its id as the whole address. All other addresses match hosts only, as on a host without targets.

Without the patches, once a minion has targets, Salt 3008 (seen in 3008.4) breaks this rule:

- The master adds the targets to each pattern that matches their host. If targets lack the function, ``salt '*' ...``
  fails, and a batch counts the targets as minions.
- The minion runs a job in all its targets for any pattern that it receives, whether the pattern matches the minion or
  not. It also runs a state function on itself.
- A ``T@`` counts as a match of the host: ``h2 or T@netspace:h1-web`` runs on ``h1``, too, and a state function for ``-L
  h2,h1-web`` does as well.
- A grain, a list or a regular expression in a compound matches targets as well.
- If a state function runs on a host and its targets, the host's own return is lost.

So the minion doesn't report its targets to the master (which accepts ``T@netspace:<id>`` without knowing the id), and
interprets addresses by the rule above. Resources of other types are left to Salt.

This module doesn't import Salt: the caller of :func:`correct` passes the minion's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.errors import NetspaceError

TYPE = "netspace"
"""Salt's name for the type of our targets."""

# Words of a compound for which the master finds fewer ids than a minion would: the master knows no target.
_NARROWING = frozenset(("and", "not", "(", ")"))
_NAMING = ("glob", "list", "compound")  # the types of address that can name a target
_CORRECTED = ("_target_load", "_resolve_resource_targets", "_thread_return", "_send_req_async_main")
_USED = ("_MERGE_RESOURCE_FUNS", "_is_pure_resource_target")
_KEPT = "_netspace_originals"


def correct(minion: type) -> None:
    """Patch Salt's minion so that it interprets addresses by the rule of this module. Repeated calls are harmless.

    :param minion: the class ``salt.minion.Minion`` of a Salt that has resources.
    :raises NetspaceError: the class is not as in Salt 3008, so there can be no targets.
    """
    lacking = [name for name in (*_CORRECTED, *_USED) if not hasattr(minion, name)]
    if lacking:
        raise NetspaceError(
            f"this Salt's minion has no {', '.join(lacking)}: environments can't be its targets; use Salt 3008"
        )
    # A newly synced version of this module must wrap the original methods, not the earlier patches.
    originals = minion.__dict__.get(_KEPT) or {name: minion.__dict__[name] for name in _CORRECTED}
    setattr(minion, _KEPT, originals)

    def target_load(self: Any, load: dict[str, Any]) -> bool:
        """Return whether the job is for this host or its targets; store in *load* which of them it is for."""
        taken: bool = originals["_target_load"](self, load)
        kind, targets = load.get("tgt_type", "glob"), bool(load.get("resource_targets"))
        # Salt sets no mark in a load that is not a job.
        if kind not in _NAMING or "pure_resource_target" not in load or not self.opts.get("resources"):
            return taken
        own = not self._is_pure_resource_target(load) and bool(
            self.matchers[f"{kind}_match.match"](load["tgt"], opts=_without(self.opts))
        )
        load["pure_resource_target"] = not own
        # The host's own job runs a state function in its targets.
        load["minion_is_target"] = own or (targets and _merged(minion, load))
        return own or targets

    def resolve(self: Any, load: dict[str, Any]) -> list[dict[str, str]]:
        """Return the targets that the job is for."""
        found: list[dict[str, str]] = originals["_resolve_resource_targets"](self, load)
        return [one for one in found if one.get("type") != TYPE or _addressed(one["id"], load)]

    def thread_return(cls: type, instance: Any, opts: dict[str, Any], data: dict[str, Any]) -> Any:
        """Run a state function first on the host, then in its targets.

        In a single run the host's own return would be lost.
        """
        run = originals["_thread_return"].__func__
        if _merged(minion, data) and data.get("resource_targets") and not data.get("pure_resource_target"):
            run(cls, instance, opts, {**data, "resource_targets": []})
            data = {**data, "pure_resource_target": True}
        return run(cls, instance, opts, data)

    async def send(self: Any, load: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Send a request to the master; remove netspace's targets from the list of the minion's resources."""
        told = untold(load) if load.get("cmd") == "_register_resources" else load
        return await originals["_send_req_async_main"](self, told, *args, **kwargs)

    for name, corrected in zip(_CORRECTED, (target_load, resolve, classmethod(thread_return), send), strict=True):
        setattr(minion, name, corrected)


def untold(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request that registers resources at the master, with netspace's targets removed."""
    resources = {kind: ids for kind, ids in (load.get("resources") or {}).items() if kind != TYPE}
    grains = {name: its for name, its in (load.get("resource_grains") or {}).items() if not name.startswith(f"{TYPE}:")}
    return {**load, "resources": resources, "resource_grains": grains}


def _addressed(target: str, load: Mapping[str, Any]) -> bool:
    """Return whether a job's address names the target in which Salt would run the job."""
    kind, address = load.get("tgt_type", "glob"), load.get("tgt", "")
    if kind == "compound":
        words = address.split() if isinstance(address, str) else address
        return f"T@{TYPE}:{target}" in words and _NARROWING.isdisjoint(words)
    return bool(kind == "glob" and address == target)


def _without(opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the minion's configuration with netspace's targets removed, so that no ``T@netspace`` matches."""
    return {**opts, "resources": {kind: ids for kind, ids in opts["resources"].items() if kind != TYPE}}


def _merged(minion: Any, load: Mapping[str, Any]) -> bool:
    """Return whether the job's function is a state function. Salt runs these in targets within the host's own job."""
    return isinstance(load.get("fun"), str) and bool(load["fun"] in minion._MERGE_RESOURCE_FUNS)
