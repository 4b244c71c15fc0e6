"""State of a fleet: what its declaration expects, and what its hosts report.

All functions are pure, except :func:`expected`, which reads the declaration. A host that doesn't answer is listed with
everything that should run there, so nothing is hidden by its silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.fleet import seen as hosts_seen
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.seen import ORDER, Mark, Seen, Standing, Trust

MOST = 20
"""The most things of one host that need attention and are shown."""


class Expected(NamedTuple):
    """The hosts and environments that a declaration expects.

    :param hosts: the minion of each host.
    :param placed: the hosts of each environment; an environment with no hosts runs nowhere yet.
    :param off: the environments that are declared stopped.
    :param waiting: why a host or environment isn't ready yet, by its name.
    :param notes: texts for the operator about the whole fleet.
    """

    hosts: Mapping[str, str]
    placed: Mapping[str, tuple[str, ...]]
    off: frozenset[str] = frozenset()
    waiting: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()


class Now(NamedTuple):
    """Everything that is known about the hosts at one moment.

    :param seen: the hosts' own answers, by host.
    :param verdicts: the verdicts of the master's verifier, by minion, as ``netspace_attestation.status`` returns them.
    :param time: seconds since 1970.
    """

    seen: Mapping[str, Seen]
    verdicts: Mapping[str, Mapping[str, Any]]
    time: float

    def trust(self, expected: Expected, host: str) -> Trust:
        """Return the trust of one host."""
        return hosts_seen.trust(self.verdicts.get(expected.hosts[host]), self.seen[host], self.time)


def expected(declaration: FleetDeclaration) -> Expected:
    """Return which environments should run where, by the declaration's present files.

    If the files have problems, or with ``apply: planned``, the hosts' slices in force count instead.

    :raises NetspaceError: the files have problems, and nothing is in force.
    """
    found = declaration.check()
    planned = declaration.given.active()
    if found.declared is not None and not found.problems and not planned:
        declared = found.declared
        return Expected(
            {host: declared.minion(host) for host in declared.hosts},
            {name: found.placed.get(name, ()) for name in declared.environments},
            frozenset(name for name, one in declared.environments.items() if one.body.get("state") == "stopped"),
            {one.subject: one.text for one in reversed(found.missing)},
        )
    problem = f"the declaration has {len(found.problems)} problems: salt-run netspace_fleet.check"
    sections = declaration.sections()
    if not sections and not planned:
        raise NetspaceError(problem)
    minions = {str(section["broker"]["host"]): minion for minion, section in sections.items()}
    placed: dict[str, tuple[str, ...]] = {}
    off = set[str]()
    for host, minion in minions.items():
        for name, body in sections[minion].get("environments", {}).items():
            placed[name] = (*placed.get(name, ()), host)
            off |= {name} if body.get("state") == "stopped" else set()
    waiting: dict[str, str] = {}
    for host in found.declared.hosts if found.declared is not None else ():
        if host not in minions:
            minions[host] = found.declared.minion(host) if found.declared is not None else host
            waiting[host] = "nothing was applied there yet: salt-run netspace_fleet.plan"
    notes = (f"{problem}; this shows the slices in force",) if found.problems else ()
    return Expected(minions, placed, frozenset(off), waiting, notes)


def status(fleet: Expected, now: Now) -> dict[str, Any]:
    """Return each host's state, what needs attention there, and the number of its environments that are well."""
    by_host: dict[str, list[tuple[str, Standing]]] = {host: [] for host in fleet.hosts}
    for name, host, standing in replicas(fleet, now):
        by_host[host].append((name, standing))
    found = {host: _host(fleet, now, host, by_host[host]) for host in fleet.hosts}
    nowhere = {name: fleet.waiting.get(name, "no host is possible") for name, on in fleet.placed.items() if not on}
    good = sum(row["state"] == "well" for row in found.values())
    counts = [one["environments"] for one in found.values()]
    well, all_of = sum(one["well"] for one in counts), sum(one["expected"] for one in counts)
    summary = f"{good} of {len(found)} hosts are well, and {well} of {all_of} replicas of environments"
    return {
        "status_of": "fleet",
        "summary": summary,
        "asked": now.time,
        "hosts": found,
        "nowhere": nowhere,
        "notes": list(fleet.notes),
    }


def good(found: Mapping[str, Any]) -> bool:
    """Return whether nothing in a result of :func:`status` needs attention."""
    return (
        not found["nowhere"] and not found["notes"] and all(one["state"] == "well" for one in found["hosts"].values())
    )


def _host(fleet: Expected, now: Now, host: str, standings: list[tuple[str, Standing]]) -> dict[str, Any]:
    seen, trust = now.seen[host], now.trust(fleet, host)
    attention = [("", "bad", seen.problem)] if seen.glance is None else []
    if trust.mark in ("bad", "odd"):
        attention.append(("trust", trust.mark, trust.why))
    if host in fleet.waiting:
        attention.append(("fleet", "odd", fleet.waiting[host]))
    if seen.glance is not None:
        attention += [(name, one.mark, one.text) for name, one in standings if one.mark in ("bad", "odd")]
        told = [(name, link) for name, link in seen.glance.links.items() if link.state != "active"]
        attention += [
            (f"link {name}", "odd", f"{link.state}{f': {link.why}' if link.why else ''}") for name, link in told
        ]
        attention += [("host", "odd", text) for text in seen.glance.problems]
    ranked = sorted(attention, key=lambda one: ORDER.index(one[1]))
    state = "unseen" if seen.glance is None else "attention" if attention else "well"
    return {
        "state": state,
        "minion": fleet.hosts[host],
        "trust": trust._asdict(),
        "environments": {"expected": len(standings), "well": sum(one.mark in ("well", "off") for _, one in standings)},
        "attention": [{"what": what, "mark": mark, "text": text} for what, mark, text in ranked[:MOST]],
        "more": max(len(ranked) - MOST, 0),
    }


def replicas(fleet: Expected, now: Now) -> Iterator[tuple[str, str, Standing]]:
    """Yield each environment, each host where it should run, and its state there.

    After these come environments of the fleet that run on a host where they should not run.
    """
    for name, hosts in fleet.placed.items():
        for host in hosts:
            yield name, host, hosts_seen.standing(name, host, now.seen[host], off=name in fleet.off)
    for host, seen in now.seen.items():
        for name, row in seen.glance.environments.items() if seen.glance is not None else ():
            if name in fleet.placed and host not in fleet.placed[name] and row.state != "stopped":
                where = ", ".join(fleet.placed[name]) or "no host"
                text = f"it should run on {where}: salt {fleet.hosts[host]} state.apply netspace"
                yield name, host, hosts_seen.of_row(row)._replace(mark="odd", text=text)


def listed(fleet: Expected, now: Now) -> dict[str, Any]:
    """Return a row for each replica of each environment. Rows that need attention come first."""
    rows: list[dict[str, Any]] = []
    for name, host, one in replicas(fleet, now):
        rows.append({"environment": name, "host": host, **one._asdict()})
    for name, hosts in fleet.placed.items():
        if not hosts:
            why = fleet.waiting.get(name, "no host is possible")
            rows.append({"environment": name, "host": "", **Standing("bad", "nowhere", text=why)._asdict()})
    rank: dict[Mark, int] = {mark: number for number, mark in enumerate(ORDER)}
    rows.sort(key=lambda row: (rank[row["mark"]], row["environment"], row["host"]))
    return {"list_of": "fleet", "asked": now.time, "environments": rows, "notes": list(fleet.notes)}
