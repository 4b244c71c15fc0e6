"""Short report on the host's state. A master gathers these reports from a whole fleet. Changes nothing."""

from __future__ import annotations

from typing import Any

from netspace.errors import NetspaceError
from netspace.host import refused as record
from netspace.host.host import Host
from netspace.text import printable

AUDITED = 64
"""The most environments whose refusals are shown."""
ROWS = 8
"""The most refusals of one environment that are shown, the newest ones."""
PROSE = 300
"""The most characters of a sentence."""
_TOLD = ("state", "health", "since", "restarts", "flapping", "updating", "supervised", "declared_stopped")


def glance(host: Host) -> dict[str, Any]:
    """Return the host's trust, and its environments and links, each with its state.

    If a part can't be read, the reason is listed under ``problems``, and the other parts are still returned.
    """
    from netspace.attestation import result

    trust, problems = host.trust(), list[str]()
    found: dict[str, Any] = {
        "glance": 1,
        "trust": {
            "level": trust.name,
            "verifier": trust.verifier,
            "reason": trust.reason[:PROSE],
            "issued": None,
            "expires": None,
        },
        "environments": {},
        "links": {},
        "refused": {},
        "problems": problems,
    }
    try:
        judged = result.load(host.layout)
        if judged is not None:
            found["trust"].update(issued=judged.issued, expires=judged.expires)
    except (NetspaceError, OSError) as err:
        problems.append(f"trust: {err}"[:PROSE])
    try:
        found["environments"] = {
            name: {**{key: row[key] for key in _TOLD}, "problem": row["problem"][:PROSE]}
            for name, row in host.environments.list().items()
        }
    except NetspaceError as err:
        problems.append(f"environments: {err}"[:PROSE])
    try:
        listed = host.links.list()
        found["links"] = {
            name: {"state": link["state"], "why": str(link.get("why", ""))[:PROSE]}
            for name, link in listed["links"].items()
        }
        problems += [str(one.get("text", ""))[:PROSE] for one in listed["findings"]]
    except NetspaceError as err:
        problems.append(f"links: {err}"[:PROSE])
    found["refused"] = _refused(host, problems)
    return found


def _refused(host: Host, problems: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return, for each audited environment, its newest refusals that are still not permitted."""
    known, _ = host.environments.readable()
    told = {}
    for name in [name for name, one in sorted(known.items()) if one.spec.audit][:AUDITED]:
        try:
            rows = [one for one in record.refused(host, name)["rows"] if not one["permitted_now"]]
        except NetspaceError as err:
            problems.append(f"refusals of {name}: {err}"[:PROSE])
            continue
        told[name] = _newest(rows)
    return {name: rows for name, rows in told.items() if rows}


def _newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest refusals, with shortened texts.

    A program can influence the texts, and the master refuses an answer with a text that is too long.
    """
    newest = sorted(rows, key=lambda one: one["last"], reverse=True)[:ROWS]
    keys = ("kind", "count", "last")
    return [{**{key: one[key] for key in keys}, "what": printable(one["what"])[:PROSE]} for one in newest]
