"""Events from two observations of a host's environments. Pure.

A lasting trouble (unhealthy, flapping, frozen, failed) causes one event, when it begins. An incident (a crash, an OOM
kill) causes an event each time. Several equal incidents between two observations cause only one event.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

EVENTS = ("crashed", "oom", "flapping", "unhealthy", "frozen", "unsupervised")
# Keys that Salt itself puts into a beacon's configuration.
_SALTS = frozenset({"interval", "disable_during_state_run", "enabled", "beacon_module", "_beacon"})
_KEYS = ("environments", "events")

Rows = Mapping[str, Mapping[str, Any]]


def problem(config: Any) -> str:
    """Return the error in a beacon's configuration (a list of mappings); empty if there is none."""
    if not isinstance(config, list) or not all(isinstance(part, Mapping) for part in config):
        return "expected a list, such as [{events: [crashed, unhealthy]}, {interval: 10}]"
    for part in config:
        for key, value in part.items():
            if key in _SALTS:
                continue
            if key not in _KEYS:
                near = difflib.get_close_matches(str(key), _KEYS, n=1)
                return f"{key}: unknown; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(_KEYS)}")
            if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
                return f"{key}: expected a list of names"
            if key == "events" and (unknown := [one for one in value if one not in EVENTS]):
                return f"events: {unknown[0]!r} is not an event; choose from {', '.join(EVENTS)}"
    return ""


def news(before: Rows | None, now: Rows, wanted: Collection[str] = EVENTS) -> list[dict[str, Any]]:
    """Return the events for changes of environments since the last observation.

    :param before: the rows of the last observation (``environments.list``); None at the first observation.
    """
    found: list[dict[str, Any]] = []
    if _alone(now) and not _alone(before or {}) and "unsupervised" in wanted:
        found.append({"tag": "unsupervised", "event": "unsupervised", "environments": sorted(now)})
    for name, row in sorted(now.items()):
        was = (before or {}).get(name)
        told = lasting(was) if was is not None else set()
        fresh = lasting(row) - told
        if was is not None and "oom" not in fresh and _rose(was, row, "oom_kills"):
            fresh = (fresh | {"oom"}) - {"crashed"}
        if was is not None and "oom" not in fresh and "crashed" not in fresh and _rose(was, row, "restarts"):
            fresh.add("oom" if row["exit"] == "oom" else "crashed")
        for event in EVENTS:
            if event in fresh and event in wanted:
                about = {key: row[key] for key in ("state", "health", "exit", "restarts", "oom_kills")}
                found.append({"tag": f"{name}/{event}", "environment": name, "event": event, **about})
    return found


def _alone(rows: Rows) -> bool:
    """Return whether these environments have no supervisor. All environments of a host have the same supervisor."""
    return any(not row["supervised"] for row in rows.values())


def lasting(row: Mapping[str, Any]) -> set[str]:
    """Return the lasting troubles in an environment's row."""
    found = {key for key, so in (("flapping", row["flapping"]), ("unhealthy", row["health"] == "unhealthy")) if so}
    if row["state"] == "frozen":
        found.add("frozen")
    if row["state"] == "failed":
        found.add("oom" if row["exit"] == "oom" else "crashed")
    return found


def _rose(was: Mapping[str, Any], row: Mapping[str, Any], count: str) -> bool:
    """Return whether a count has increased since the last observation. A requested start resets all counts to 0."""
    earlier = was[count] if row[count] >= was[count] and row["restarts"] >= was["restarts"] else 0
    return bool(row[count] > earlier)
