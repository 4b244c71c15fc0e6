"""Explanation of one environment: why it runs or doesn't, and which command would help. Changes nothing.

The function :func:`causes` finds the causes. It is pure, and uses only observations. A finding's advice and command are
sentences of this module, and contain only names and numbers of the declaration. A program's own words appear only in
``text`` and ``log``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from netspace.errors import NetspaceError
from netspace.host import delegation_records
from netspace.host.host import Host
from netspace.plugin.explanation import ADVICE
from netspace.spec import delegations, trust
from netspace.spec.trust import Trust
from netspace.spec.types import Declaration, Environment
from netspace.text import hint

if TYPE_CHECKING:
    from netspace.environment.observe import Around
    from netspace.link.mail.refused import Refused
    from netspace.link.problems import Problem

Severity = Literal["error", "warning", "note"]

LINES = 4
"""Lines of the log that are returned."""
APPLY = "state.apply netspace"
_KEYS = 6
"""The most changed keys of a declaration that are named."""


class Finding(NamedTuple):
    """A reason why an environment doesn't run or work.

    :param code: a stable identifier, for programs.
    :param severity: ``error``: the environment doesn't run or isn't healthy; ``warning``: a part of it doesn't work;
        ``note``: its state is intended, or the reason is past.
    :param text: the reason as a sentence.
    :param command: a function of Salt, with its arguments, that helps or shows more; empty if there is none.
    :param depends_on: the environment that is the cause, if it is another one.
    """

    code: str
    severity: Severity
    text: str
    command: str = ""
    depends_on: str = ""

    @property
    def advice(self) -> str:
        """The sentence on the remedy. It depends on ``code`` alone, so no program can put text into it."""
        return ADVICE[self.code]


class Facts(NamedTuple):
    """Everything that was observed about one environment.

    :param declared: its declaration in the pillar; None if it isn't declared, or the pillar can't be read.
    :param applied: the specification that was applied; None if none was.
    :param wanted: the state that a declaration or an operator requested last.
    :param row: its row of ``netspace_environment.list``; empty if it wasn't applied.
    :param withheld: why it is withheld for lack of trust; empty if it isn't.
    :param image_problem: why its image can't be built now; empty if it can.
    :param impossible: why this host refuses to make it; empty if it doesn't.
    :param waiting: the keys of its declaration in the pillar that differ from what was applied.
    :param taken_back: why its last update was taken back; empty if it wasn't.
    :param after: the environments that it waits for, and whether each is ready.
    :param interface: its row of ``netspace_interface.inspect``; empty if it has no interface.
    :param links: its rows of ``netspace_link.list``.
    :param problems: the problems that some of its links depend on.
    :param cut_off: how often, and why, the broker cut its connections; see ``link.mail.refused``.
    :param dead: its dead letters by reason; see ``link.mail.refused``.
    :param refused: by kind, how many things that ``audit`` records were refused to it and are still not permitted.
    """

    name: str
    declared: Environment | None = None
    applied: Environment | None = None
    wanted: str = ""
    row: Mapping[str, Any] = {}
    withheld: str = ""
    image_problem: str = ""
    impossible: str = ""
    waiting: Sequence[str] = ()
    taken_back: str = ""
    after: Mapping[str, bool] = {}
    interface: Mapping[str, Any] = {}
    links: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[Problem] = ()
    cut_off: Mapping[str, Any] = {}
    dead: Mapping[str, Mapping[str, int]] = {}
    refused: Mapping[str, int] = {}


def causes(facts: Facts) -> list[Finding]:
    """Return the findings; the most important come first: errors, then warnings, then notes."""
    found = [*_not_running(facts), *_parts(facts)]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda one: order.index(one.severity))


def _not_running(facts: Facts) -> Iterator[Finding]:
    row, spec, name = facts.row, facts.applied, facts.name
    runs = row.get("state") == "running"
    if facts.withheld and not _off(facts):
        severity: Severity = "warning" if runs else "error"  # with on_loss, it may go on without trust
        told = "netspace_attestation.status"
        yield Finding("withheld", severity, facts.withheld, told)
    if facts.image_problem and not runs and not _off(facts):
        yield Finding("image-missing", "error", facts.image_problem, APPLY)
    if spec is None:
        if row.get("problem"):
            yield Finding("record-damaged", "error", str(row["problem"]), APPLY)
        elif facts.impossible and not _off(facts):
            yield Finding("impossible", "error", facts.impossible, APPLY)
        elif _off(facts) or not (facts.withheld or facts.image_problem):
            yield Finding("not-applied", "error", "it is declared, but was not applied", APPLY)
        return
    if not row["supervised"] and facts.wanted != "stopped":
        text = "the supervisor doesn't run, so nothing starts it again"
        yield Finding("unsupervised", "error", text, APPLY)
    state = row["state"]
    if state == "stopped":
        yield from _stopped(facts, spec)
    elif state == "frozen":
        yield Finding("frozen", "error", "a signal has stopped its process", APPLY)
    elif state in ("failed", "starting") or row["health"] in ("unhealthy", "unknown") or row["flapping"]:
        yield from _failing(facts, spec)
    elif row["oom_kills"]:
        text = f"{row['oom_kills']} of its processes were killed for lack of memory"
        yield Finding("oom", "warning", _bounded(text, spec), APPLY)
    if facts.taken_back:
        yield Finding("update-taken-back", "warning", facts.taken_back, f"netspace_environment.retry {name}")


def _off(facts: Facts) -> bool:
    """Return whether the environment is declared stopped, and doesn't run.

    In this state it needs neither trust nor an image.
    """
    wanted = facts.declared or facts.applied
    return wanted is not None and wanted.state == "stopped" and facts.row.get("state") in (None, "stopped")


def _stopped(facts: Facts, spec: Environment) -> Iterator[Finding]:
    if facts.withheld and not _off(facts):
        return
    start = f"netspace_environment.start {facts.name}"
    if facts.wanted == "running":
        last = facts.row["exit"] or "exit 0"
        text = f"its program ended ({last}), and restart: {spec.restart} doesn't start it again"
        yield Finding("ended", "note" if last == "exit 0" else "error", text, _log(facts.name))
    elif spec.state == "running":
        yield Finding("stopped-by-operator", "warning", "an operator stopped it", start)
    elif facts.declared is not None and facts.declared.state == "running":
        yield Finding("change-waits", "error", "it is declared to run, but this declaration was not applied yet", APPLY)
    else:
        text = "it is stopped, as it is declared (state: stopped)"
        yield Finding("declared-stopped", "note", text)


def _failing(facts: Facts, spec: Environment) -> Iterator[Finding]:
    row = facts.row
    waits = [other for other, ready in facts.after.items() if not ready]
    if row["exit"] == "oom":
        text = _bounded("it was killed for lack of memory", spec)
        yield Finding("oom", "error", _repeated(text, row), APPLY)
    elif row["state"] == "starting" and waits and not row["exit"]:
        text = f"it waits for {', '.join(waits)}"
        command = f"netspace.explain {waits[0]}"
        yield Finding("waits", "error", text, command, waits[0])
    elif row["state"] == "running" and row["health"] == "unknown":
        yield Finding("unwatched", "error", str(row["problem"]), APPLY)
    elif row["problem"]:
        yield Finding("failing", "error", _repeated(str(row["problem"]), row), _log(facts.name))
    elif row["flapping"]:  # it runs at this moment
        yield Finding("failing", "error", _repeated(f"it ended ({row['exit']})", row), _log(facts.name))
    else:
        text = f"it is {row['state']}, and no reason is known"
        yield Finding("starting", "note", text, f"netspace_environment.wait {facts.name}")


def _repeated(text: str, row: Mapping[str, Any]) -> str:
    return f"{text}; restarted {row['restarts']} times" if row["restarts"] else text


def _bounded(text: str, spec: Environment) -> str:
    return f"{text} (limits:memory is {spec.limits.memory // 1024**2} MiB)"


def _log(name: str) -> str:
    return f"netspace_environment.logs {name}"


def _parts(facts: Facts) -> Iterator[Finding]:
    if facts.image_problem and "image" in facts.waiting and facts.row.get("state") == "running":
        yield Finding("image-missing", "warning", facts.image_problem, APPLY)
    if facts.waiting:
        text = f"its declaration in pillar was changed, but not applied ({', '.join(facts.waiting[:_KEYS])})"
        yield Finding("change-waits", "warning", text, APPLY)
    if facts.interface.get("state") == "missing":
        yield Finding("interface-missing", "error", "its network namespace is gone", APPLY)
    elif facts.interface.get("drift"):
        text = f"its interface was changed by hand ({', '.join(sorted(facts.interface['drift']))})"
        yield Finding("interface-differs", "warning", text, APPLY)
    for name in facts.interface.get("names", {}).values():
        if problem := name.get("problem"):
            severity: Severity = "note" if problem["code"] == "name-new" else "warning"
            command = f"netspace_interface.inspect {facts.name}"
            yield Finding(problem["code"], severity, f"name in allow: {problem['text']}", command)
    for problem in facts.problems:  # one for all links that depend on it
        yield Finding(problem.code, "warning", problem.text, APPLY)
    for link in facts.links:
        if link["state"] != "active" and not link.get("depends_on"):
            text = f"the link {link['from']} -> {link['to']} is {link['state']}"
            said = f"{text}: {link['why']}" if link.get("why") else text
            yield Finding("link-down", "warning", said, APPLY)
    if facts.cut_off:
        text = f"the broker cut it off {facts.cut_off['times']} times: it {facts.cut_off['why']}"
        yield Finding("cut-off", "warning", text, _log(facts.name))
    for name, reasons in facts.dead.items():
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        yield Finding("dead-letters", "warning", f"dead letters of {name}: {told}", "netspace_link.dead_letters")
    if facts.refused:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(facts.refused.items()))
        yield Finding("refused", "note", f"it was refused {told}", f"netspace.suggest {facts.name}")


def explain(host: Host, name: str, declared: Declaration | None, invalid: str = "") -> dict[str, Any]:
    """Return the explanation of environment *name*, as plain values.

    :param declared: the host's declaration; None: there is none, or it is invalid.
    :param invalid: why the declaration can't be read; empty if it can, or if there is none.
    :raises NetspaceError: no such environment is declared or applied.
    """
    from netspace.environment import observe

    known, damaged = host.environments.readable()
    spec = None if declared is None else declared.environments.get(name)
    if name not in known and name not in damaged and spec is None:
        everyone = {*known, *damaged, *(() if declared is None else declared.environments)}
        unread = "; the declaration in pillar has mistakes: netspace.check" if invalid else ""
        raise NetspaceError(f"there is no environment {name}; {hint(name, everyone)}{unread}")
    record = known.get(name)
    around = observe.around(host.layout, host.supervisor, known, [name])
    row: Mapping[str, Any] = {}
    if record is not None or name in damaged:
        row = observe.describe(host.layout, name, around, damaged.get(name, ""))
    level, refused = host.trust(), _refused(host, name) if record is not None else None
    waiting: tuple[str, ...] = ()
    if record is not None and spec is not None and declared is not None:
        waiting = _waiting(host, name, record.spec, spec, declared)
    links, problems = _links(host, name)
    withheld = _withheld(spec if record is None else record.spec, declared, level)
    image_problem = _image(host, spec, "" if "image" in waiting else row.get("state"))
    facts = Facts(
        name=name,
        declared=spec,
        applied=None if record is None else record.spec,
        wanted="" if record is None else record.state,
        row=row,
        withheld=withheld,
        image_problem=image_problem,
        impossible="" if row or declared is None or withheld or image_problem else host.refuses(declared, name),
        waiting=waiting,
        taken_back="" if record is None or record.failed is None else record.failed.reason,
        after={} if record is None else _after(host, record.spec, around),
        interface=_interface(host, name),
        links=links,
        problems=problems,
        cut_off={} if refused is None else refused.cut_off,
        dead={} if refused is None else refused.dead,
        refused=_audited(host, name) if record is not None else {},
    )
    return _told(host, facts, level, invalid)


def _withheld(spec: Environment | None, declared: Declaration | None, level: Trust) -> str:
    if spec is None:
        return ""
    default = declared.attestation if declared is not None else Declaration().attestation
    verdict = trust.judge(trust.requirement(spec, default), level)
    return "" if verdict.allowed else verdict.comment


def _waiting(host: Host, name: str, applied: Environment, spec: Environment, declared: Declaration) -> tuple[str, ...]:
    """Return the keys of the declaration *spec* that differ from what was applied."""
    from netspace.environment.comparison.differences import differences

    # The record has the requirement in force, which may be the host's default.
    asked = msgspec.structs.replace(spec, attestation=trust.requirement(spec, declared.attestation))
    keys = sorted(differences(applied, asked))
    if spec.runtime != applied.runtime:
        keys.append("runtime")
    if spec.state == "running" and applied.state == "stopped":  # a finding of its own
        keys.remove("state")
    if host.interfaces.names([name]) and host.interfaces.declared(name) != spec.interface:
        keys.append("interface")
    wanted, made = (
        {link.name: link for link in links if name in (link.source, link.target)}
        for links in (declared.links, host.links.recorded())
    )
    free = delegations.possible(declared.environments).keys()  # those come and go as programs want
    return (*keys, *sorted(f"link {one}" for one in {*wanted, *made} - free if wanted.get(one) != made.get(one)))


def _image(host: Host, spec: Environment | None, state: str | None) -> str:
    if spec is None or spec.kernel is not None or state == "running":
        return ""
    problem: str = host.environments.store.problem(spec.image)
    return problem


def _after(host: Host, spec: Environment, around: Around) -> dict[str, bool]:
    from netspace.environment import observe
    from netspace.environment.container import oci_runtime

    ready = {}
    for other in spec.after:
        record, status = around.known.get(other), around.statuses.get(oci_runtime.service_name(other))
        judged = None if record is None else observe.current(host.layout, other, record, status)
        ready[other] = record is not None and observe.is_up(record, status, judged)
    return ready


def _interface(host: Host, name: str) -> dict[str, Any]:
    if not host.interfaces.names([name]):
        return {}
    found: dict[str, Any] = host.interfaces.inspect(name)
    return found


def _links(host: Host, name: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the rows of the environment's links, and the problems on which some rows depend."""
    from netspace.link.problems import from_row

    if not any(name in (link.source, link.target) for link in host.links.recorded()):
        return [], []
    listed = host.links.list()
    delegation_records.mark(host.layout, listed["links"])
    found = []
    for link in listed["links"].values():
        if name in (link["from"], link["to"]):
            mailbox = listed["mailboxes"].get(link["to"], {})
            keys = ("from", "to", "pattern", "state", "why", "depends_on", "delegated_by", "until")
            shown = {key: link[key] for key in keys if key in link}
            found.append({**shown, "waiting": mailbox.get("messages"), "readers": mailbox.get("consumers")})
    needed = {link.get("depends_on") for link in found}
    return found, [one for one in map(from_row, listed["findings"]) if one.key in needed]


def _refused(host: Host, name: str) -> Refused:
    from netspace.link.mail import refused

    return refused.refused(host.layout, name)


def _audited(host: Host, name: str) -> dict[str, int]:
    from netspace.host import refused

    with contextlib.suppress(NetspaceError):  # netspace.refused says why it can't be read
        return refused.counts(host, name)
    return {}


def _told(host: Host, facts: Facts, level: Trust, invalid: str) -> dict[str, Any]:
    """Return the explanation as plain values, for the output of a Salt function."""
    found = causes(facts)
    row, spec = facts.row, facts.applied or facts.declared
    worst = found[0] if found and found[0].severity != "warning" else None
    runs = row.get("state") == "running"
    summary = f"{facts.name} {'runs' if runs else 'does not run'}{f': {worst.text}' if worst else ''}"
    return {
        "explains": facts.name,
        "summary": summary,
        **({"parent": row["parent"]} if "parent" in row else {}),
        "state": row.get("state", "absent"),
        "health": row.get("health", ""),
        "since": row.get("since"),
        "pillar": invalid or ("declared" if facts.declared is not None else "not declared there"),
        "declared_state": "" if spec is None else spec.state,
        "restart": "" if spec is None else spec.restart,
        "image": "" if spec is None else spec.kernel or spec.image,
        "digest": row.get("digest", ""),
        "trust": {"level": level.name, "withheld": facts.withheld},
        "after": dict(facts.after),
        "last_exit": row.get("exit", ""),
        "restarts": row.get("restarts", 0),
        "limits": _limits(host, facts),
        "interface": {key: facts.interface[key] for key in ("kind", "state", "addresses") if key in facts.interface},
        "links": list(facts.links),
        "refused": dict(facts.refused),
        "host": _asked(host, facts),
        "findings": [{**one._asdict(), "advice": one.advice} for one in found],
        "log": _last_lines(host, facts),
    }


def _asked(host: Host, facts: Facts) -> dict[str, Any]:
    """Return the requests that the environment may make to the host, and the counts of those that it made."""
    from netspace.host.peer import uses
    from netspace.link import host_peer

    if facts.applied is None or not facts.applied.host:
        return {"may": [], "uses": {}}
    counted = uses.read(host_peer.folder(host.layout) / host_peer.OWN).get(facts.name, {})
    told = {what: {"times": use.times, "last": use.last} for what, use in sorted(counted.items())}
    return {"may": list(facts.applied.host), "uses": told}


def _limits(host: Host, facts: Facts) -> dict[str, Any]:
    from netspace.environment import counters

    if facts.applied is None:
        return {}
    reader = counters.Reader()
    group = host.environments.making.cgroup(facts.name)
    seen = {counter: reader.read(counter, group) for counter in counters.COUNTERS}
    limits = facts.applied.limits
    return {
        "memory": {"limit": int(limits.memory), "used": seen["memory"], "hits": seen["memory_hits"]},
        "pids": {"limit": limits.pids, "used": seen["processes"], "hits": seen["process_hits"]},
        "cpus": {
            "limit": limits.cpus,
            "seconds": seen["processor_seconds"],
            "throttled": seen["throttled_seconds"],
        },
        "oom_kills": facts.row["oom_kills"],
    }


def _last_lines(host: Host, facts: Facts) -> list[str]:
    if facts.applied is None:
        return []
    since = facts.row.get("since")
    # Lines of an earlier run say nothing about a program that runs. A second more, since it may write at once.
    ago = max(time.time() - since, 0) + 1 if facts.row.get("state") == "running" and since else None
    for begin in [None] if ago is None else [ago, None]:
        with contextlib.suppress(NetspaceError):  # no log, no journal, or no times in the log
            lines: list[str] = host.operations.logs(facts.name, LINES, begin)["lines"]
            return [line[:400] for line in lines]
    return []
