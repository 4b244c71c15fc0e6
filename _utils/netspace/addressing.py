"""Addresses of jobs where environments are Salt's targets, and the corrections of Salt's minion that they need.

A target runs what is addressed to it as such: by ``T@netspace:<id>`` in a compound, or by its whole id. All other
addresses mean hosts, as they do where there are no targets.

Salt 3008 (seen in 3008.4) reads addresses otherwise, once a minion has targets (its *resources*):

- The master adds them to each pattern that matches their host. A function that they lack is then a failure of
  ``salt '*' ...``, and a batch asks them as minions of their own.
- The minion runs a job in all its targets, and a state function on itself, by any pattern that it gets to see, whether
  the pattern matches it or not.
- A ``T@`` counts as a match of the host: ``h2 or T@netspace:h1-web`` runs on ``h1``, too. So does a state function for
  ``-L h2,h1-web``.
- A grain, a list or a regular expression in a compound means targets as well.
- Of a state function for a host and its targets, the host's own return is lost.

So the master is not told of targets (it takes ``T@netspace:<id>`` without knowing the id), and the minion reads
addresses by the rule above. Resources of other types are left to Salt.

Imports no Salt: :func:`correct` is given its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.errors import NetspaceError

TYPE = "netspace"
"""Salt's name for the type of our targets."""

_NAMING = ("glob", "list", "compound")  # the addresses that can name a target
_CORRECTED = ("_target_load", "_resolve_resource_targets", "_thread_return", "_send_req_async_main")
_USED = ("_MERGE_RESOURCE_FUNS", "_is_pure_resource_target")
_KEPT = "_netspace_originals"


def correct(minion: type) -> None:
    """Have Salt's minion read addresses by the rule of this module. It may be called any number of times.

    :param minion: ``salt.minion.Minion``, of a Salt that has resources.
    :raises NetspaceError: when that class is not as in Salt 3008: then there can be no targets.
    """
    lacking = [name for name in (*_CORRECTED, *_USED) if not hasattr(minion, name)]
    if lacking:
        raise NetspaceError(
            f"this Salt's minion has no {', '.join(lacking)}: environments can't be its targets; use Salt 3008"
        )
    # Synchronised anew, this module corrects the class and not its own former corrections.
    originals = minion.__dict__.get(_KEPT) or {name: minion.__dict__[name] for name in _CORRECTED}
    setattr(minion, _KEPT, originals)

    def target_load(self: Any, load: dict[str, Any]) -> bool:
        """Return whether the job is for this host or its targets, and note in *load* for which."""
        taken: bool = originals["_target_load"](self, load)
        kind, targets = load.get("tgt_type", "glob"), bool(load.get("resource_targets"))
        # What is no job at all was left without a mark.
        if kind not in _NAMING or "pure_resource_target" not in load or not self.opts.get("resources"):
            return taken
        own = not self._is_pure_resource_target(load) and bool(
            self.matchers[f"{kind}_match.match"](load["tgt"], opts=_without(self.opts))
        )
        load["pure_resource_target"] = not own
        # A state function is run in targets by the host's own job.
        load["minion_is_target"] = own or (targets and _merged(minion, load))
        return own or targets

    def resolve(self: Any, load: dict[str, Any]) -> list[dict[str, str]]:
        """Return the targets that the job is for."""
        found: list[dict[str, str]] = originals["_resolve_resource_targets"](self, load)
        return [one for one in found if one.get("type") != TYPE or _addressed(one["id"], load)]

    def thread_return(cls: type, instance: Any, opts: dict[str, Any], data: dict[str, Any]) -> Any:
        """Run a state function first on the host, then in its targets: run as one, the host's return is lost."""
        run = originals["_thread_return"].__func__
        if _merged(minion, data) and data.get("resource_targets") and not data.get("pure_resource_target"):
            run(cls, instance, opts, {**data, "resource_targets": []})
            data = {**data, "pure_resource_target": True}
        return run(cls, instance, opts, data)

    async def send(self: Any, load: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Send a request to the master; what it is told of this minion's resources has no target of ours in it."""
        told = untold(load) if load.get("cmd") == "_register_resources" else load
        return await originals["_send_req_async_main"](self, told, *args, **kwargs)

    for name, corrected in zip(_CORRECTED, (target_load, resolve, classmethod(thread_return), send), strict=True):
        setattr(minion, name, corrected)


def untold(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request that tells the master of resources, without our targets."""
    resources = {kind: ids for kind, ids in (load.get("resources") or {}).items() if kind != TYPE}
    grains = {name: its for name, its in (load.get("resource_grains") or {}).items() if not name.startswith(f"{TYPE}:")}
    return {**load, "resources": resources, "resource_grains": grains}


def _addressed(target: str, load: Mapping[str, Any]) -> bool:
    """Return whether a job that Salt would run in this target is addressed to it as such."""
    kind, address = load.get("tgt_type", "glob"), load.get("tgt", "")
    if kind == "compound":
        words = address.split() if isinstance(address, str) else address
        return f"T@{TYPE}" in words or f"T@{TYPE}:{target}" in words
    return bool(kind == "list" or (kind == "glob" and address == target))


def _without(opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a minion's configuration as if it had no targets of ours: no ``T@netspace`` matches."""
    return {**opts, "resources": {kind: ids for kind, ids in opts["resources"].items() if kind != TYPE}}


def _merged(minion: Any, load: Mapping[str, Any]) -> bool:
    """Return whether Salt runs the job's function in targets within the host's own job: a state function."""
    return isinstance(load.get("fun"), str) and bool(load["fun"] in minion._MERGE_RESOURCE_FUNS)
