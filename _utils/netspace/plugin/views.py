"""Tables for a terminal: the returns of netspace's functions. The form of a return shows which function made it. Pure.

A return comes from another host, and is untrusted. A value of an unexpected form raises only errors of
:data:`MALFORMED`. The caller then shows the return in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from netspace.plugin import (
    base_view,
    differences,
    explanation,
    fleet_plans,
    fleet_views,
    inspected,
    metrics_view,
    reachability,
    tables,
    trials,
)
from netspace.plugin.tables import Cell, Paint, Row, Tone, mapping, prose, sequence, text

MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

BAD, ODD, WELL, OFF = range(4)
"""Ranks of rows: something is wrong; it is changing or unusual; it is well; it is off, as declared."""
_TONES: tuple[Tone, ...] = ("bad", "warn", "good", "dim")
_ENDED = ("failed", "frozen")


class Screen(NamedTuple):
    """The values that all tables of one screen share."""

    now: float
    paint: Paint


def render(data: object, screen: Screen) -> list[str] | None:
    """Return the lines that show a function's return; None if no function makes returns of this form.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value in the return has an unexpected
        form.
    """
    if trials.known(data):
        return trials.lines(data, screen.paint)
    if isinstance(data, str) and metrics_view.known(data):
        return metrics_view.lines(data, screen.now, screen.paint)
    if not isinstance(data, Mapping):
        return None
    if not data:
        return ["  none"]
    for knows, lines in _VIEWS:
        if knows(data):
            return lines(data, screen)
    return None


# -- forms ----------------------------------------------------------------------
def _has(*keys: str) -> Callable[[Mapping[str, object]], bool]:
    return lambda data: all(key in data for key in keys)


def _rows_have(*keys: str) -> Callable[[Mapping[str, object]], bool]:
    return lambda data: all(isinstance(row, Mapping) and all(key in row for key in keys) for row in data.values())


def _items(value: object) -> Iterable[tuple[str, Mapping[str, object]]]:
    return ((text(name), mapping(row)) for name, row in sorted(mapping(value).items(), key=lambda one: text(one[0])))


# -- environments ---------------------------------------------------------------
def _rank(row: Mapping[str, object]) -> int:
    state, health = row["state"], row.get("health")
    if row.get("declared_stopped") is True and state == "stopped":
        return OFF
    if state in _ENDED or health == "unhealthy" or row.get("flapping") is True or row.get("problem"):
        return BAD
    settled = state == "running" and health in ("", None, "healthy") and row.get("updating") is not True
    return WELL if settled and row.get("supervised") is not False else ODD


def _state(row: Mapping[str, object]) -> str:
    if row.get("flapping") is True:
        return "flapping"
    return "declared stopped" if _rank(row) == OFF else text(row["state"])


def _environment_notes(row: Mapping[str, object], rank: int) -> list[Cell]:
    notes = []
    if problem := prose(row.get("problem")):
        notes.append(Cell(problem, _TONES[rank]))
    if kills := tables.number(row.get("oom_kills")):
        notes.append(Cell(f"the kernel killed {kills:.0f} of its processes for lack of memory", "warn"))
    if row.get("updating") is True:
        notes.append(Cell("an update runs: it has a second instance", "dim"))
    if row.get("supervised") is False:
        notes.append(Cell("the supervisor doesn't run, so nothing restarts it; apply again", "warn"))
    return notes


def _environments(data: object, screen: Screen, level: str = "") -> list[str]:
    rows = []
    for name, row in _items(data):
        rank = _rank(row)
        tone = _TONES[rank]
        image, address = text(row.get("image")), _address(row["interface"]) if "interface" in row else ""
        since = tables.age(row.get("since"), screen.now) if row["state"] != "stopped" else ""
        state = [
            Cell(name),
            Cell(text(row.get("tenant"))),
            Cell(_state(row), tone),
            Cell(text(row.get("health")), tone),
            Cell(text(row.get("restarts"))),
        ]
        more = [Cell(since), Cell(level), Cell(address), Cell("" if address else image)]
        rows.append(Row(rank, [*state, *more], _environment_notes(row, rank)))
    heads = ("ENVIRONMENT", "TENANT", "STATE", "HEALTH", ">RESTARTS", ">AGE", "LEVEL", "ADDRESS", "IMAGE")
    return tables.table(heads, rows, screen.paint)


def _tenants(data: object, screen: Screen) -> list[str]:
    rows = []
    for name, row in _items(data):
        for key, both in mapping(row["quota"]).items():
            used = mapping(both)
            full: Tone = "warn" if used["declared"] == used["most"] and text(used["most"]) != "0" else ""
            rows.append(
                Row(0, [Cell(name), Cell(text(key)), Cell(text(used["declared"]), full), Cell(text(used["most"]))])
            )
    return tables.table(("TENANT", "OF", ">DECLARED", ">QUOTA"), rows, screen.paint)


def _address(interface: object) -> str:
    """Return an interface's first address, and the number of its other addresses: ``10.0.0.2 +1``."""
    addresses = [text(one) for one in mapping(mapping(interface).get("addresses") or {}).values()]
    more = f" +{len(addresses) - 1}" if len(addresses) > 1 else ""
    return f"{addresses[0]}{more}" if addresses else "lo alone"


# -- interfaces -----------------------------------------------------------------
def _interfaces(data: object, screen: Screen) -> list[str]:
    rows = []
    for name, row in _items(data):
        rank = {"present": WELL, "differs": ODD}.get(text(row["state"]), BAD)
        notes = []
        if "differs" in row:
            changed = ", ".join(text(one) for one in sequence(row["differs"]))
            notes.append(Cell(f"changed by hand: {changed}; the next apply repairs it", "warn"))
        elif rank == BAD:
            notes.append(Cell("its network namespace is gone; apply again", "bad"))
        ports = ", ".join(text(one) for one in sequence(row.get("publish") or []))
        kind, end = Cell(text(row["kind"])), Cell(text(row.get("host_end")))
        cells = [Cell(name), kind, Cell(text(row["state"]), _TONES[rank]), Cell(_address(row)), end, Cell(ports)]
        rows.append(Row(rank, cells, notes))
    return tables.table(("ENVIRONMENT", "KIND", "STATE", "ADDRESS", "HOST END", "PORTS"), rows, screen.paint)


# -- links ----------------------------------------------------------------------
def _links(data: object, screen: Screen) -> list[str]:
    found = mapping(data)
    broker, mailboxes = mapping(found["broker"]), mapping(found["mailboxes"])
    rows = []
    for _, link in _items(found["links"]):
        mailbox = mapping(mailboxes.get(text(link["to"])) or {})
        waiting, readers = tables.number(mailbox.get("messages")), tables.number(mailbox.get("consumers"))
        unread = bool(waiting) and readers == 0
        rank = BAD if link["state"] != "active" else ODD if unread else WELL
        notes = [Cell(prose(link["why"]), "bad")] if link.get("why") else []
        notes += [Cell(f"nobody reads the mailbox of {text(link['to'])}", "warn")] if unread else []
        manner = [text(link["pattern"]), text(link.get("via")), "sealed" if link.get("seal") is True else ""]
        ends = [Cell(text(link["from"])), Cell(text(link["to"])), Cell(", ".join(filter(None, manner)))]
        counts = [Cell(text(mailbox.get("messages"))), Cell(text(mailbox.get("consumers")))]
        rows.append(Row(rank, [*ends, Cell(text(link["state"]), _TONES[rank]), *counts], notes))
    lines = tables.table(("FROM", "TO", "PATTERN", "STATE", ">WAITING", ">READERS"), rows, screen.paint)
    return [*lines, *_broker(found, broker, screen.paint)]


def _broker(found: Mapping[str, object], broker: Mapping[str, object], paint: Paint) -> list[str]:
    state = text(broker["state"])
    if state == "absent" and not found["links"]:
        return tables.sentence(Cell("no links", "dim"), paint)
    detail = prose(broker.get("detail"))
    tone: Tone = "dim" if state == "running" else "bad"
    lines = tables.sentence(Cell(f"broker {state}{': ' if detail else ''}{detail}", tone), paint)
    if tables.number(found.get("dead")):
        dead = f"{text(found['dead'])} dead letters: netspace_link.dead_letters shows them"
        lines += tables.sentence(Cell(dead, "bad"), paint)
    if parked := sequence(found.get("parked") or []):
        owners = ", ".join(text(one) for one in parked)
        lines += tables.sentence(Cell(f"mail without a link is kept for {owners}", "warn"), paint)
    return lines


# -- trust ----------------------------------------------------------------------
def _judge(verifier: object) -> str:
    """Return a verifier's name; ``nobody`` for a host that was never appraised."""
    return "nobody yet" if verifier == "none" else text(verifier)


def _trust(data: object, screen: Screen) -> list[str]:
    """Return the lines about the trust of the host that was asked."""
    trust = mapping(data)
    expires = tables.until(trust.get("expires"), screen.now)
    ended = tables.number(trust.get("expires")) is not None and not expires.startswith("in ")
    heading = f"trust {text(trust['level'])}, judged by {_judge(trust['verifier'])}"
    result = f"; the result {'ended' if ended else 'ends'} {expires}" if expires else ""
    tone: Tone = "bad" if ended or trust["level"] == "L0" else "head"
    lines = tables.sentence(Cell(heading + result, tone), screen.paint)
    for key, label in (("reason", "not higher: "), ("remedy", "to raise it: ")):
        if trust.get(key):
            lines += tables.sentence(Cell(label + prose(trust[key])), screen.paint)
    if trust.get("fallback") is True:
        lines += tables.sentence(Cell("the TPM could not be used, so a software key signed", "warn"), screen.paint)
    return lines


def _fleet(data: object, screen: Screen) -> list[str]:
    """Return the table of the hosts that the master's verifier has enrolled or appraised."""
    rows = []
    for name, host in _items(data):
        state = text(host["state"])
        rank = WELL if state == "trusted" else ODD if state in ("enrolled", "degraded") else BAD
        notes = [Cell(prose(host[key])) for key in ("reason", "remedy") if rank != WELL and host.get(key)]
        level = [Cell(text(host["level"])), Cell(text(host["minimum"])), Cell(text(host.get("group")))]
        times = [
            Cell(tables.age(host.get("evidence"), screen.now)),
            Cell(tables.until(host.get("deadline"), screen.now)),
        ]
        rows.append(Row(rank, [Cell(name), Cell(state, _TONES[rank]), *level, *times], notes))
    return tables.table(("HOST", "STATE", "LEVEL", "WANTED", "GROUP", ">AGE", ">DEADLINE"), rows, screen.paint)


def _bases(data: object, screen: Screen) -> list[str]:
    return base_view.lines(data, screen.now, screen.paint)


def _enrolled(data: object, screen: Screen) -> list[str]:
    """Return the table of the hosts whose TPMs the registrar has enrolled."""
    rows = []
    for name, host in _items(data):
        expires = tables.number(host["expires"])
        rank = WELL if expires is not None and expires > screen.now else BAD
        notes = [Cell(f"not higher: {prose(host['reason'])}")] if host["reason"] else []
        tpm = f"{text(host['ek'])[:16]}..."
        ends = Cell(tables.until(host["expires"], screen.now), _TONES[rank])
        times = [Cell(tables.age(host["enrolled"], screen.now)), ends]
        rows.append(Row(rank, [Cell(name), Cell(text(host["level"])), Cell(tpm), *times], notes))
    return tables.table(("HOST", "LEVEL", "TPM", ">ENROLLED", ">CERTIFICATE ENDS"), rows, screen.paint)


# -- images and volumes -----------------------------------------------------------
def _images(data: object, screen: Screen) -> list[str]:
    rows = []
    # The newest first: that is the one which is being rolled out.
    for digest, image in sorted(_items(data), key=lambda one: -(tables.number(one[1].get("built")) or 0)):
        users = ", ".join(text(one) for one in sequence(image["used_by"]))
        missing = "size" not in image
        rank = BAD if missing else WELL if users else OFF
        notes = [Cell("its file is gone; apply again", "bad")] if missing else []
        sources = ", ".join(text(one) for one in sequence(image["sources"]))
        facts = [Cell(tables.size(image.get("size"))), Cell(tables.age(image.get("built"), screen.now))]
        short = digest.removeprefix("sha256:")[:12]
        rows.append(Row(rank, [Cell(short), *facts, Cell(users or "nobody", _TONES[rank]), Cell(sources)], notes))
    return tables.table(("IMAGE", ">SIZE", ">AGE", "USED BY", "SOURCES"), rows, screen.paint)


def _volumes(data: object, screen: Screen) -> list[str]:
    rows = []
    for name, volumes in _items(data):
        for target, volume in _items(volumes):
            sizes = [Cell(tables.size(volume["used"])), Cell(tables.size(volume["size"]))]
            rows.append(Row(WELL, [Cell(name), Cell(target), *sizes, Cell(text(volume["file"]), "dim")]))
    return tables.table(("ENVIRONMENT", "TARGET", ">USED", ">SIZE", "FILE"), rows, screen.paint)


def _is_volumes(data: Mapping[str, object]) -> bool:
    return all(isinstance(row, Mapping) and row and _rows_have("file", "size", "used")(row) for row in data.values())


# -- a whole host -----------------------------------------------------------------
def _overview(data: object, screen: Screen) -> list[str]:
    found = mapping(data)
    trust = mapping(found["trust"])
    lines = _trust(trust, screen)
    if environments := mapping(found["environments"]):
        lines += ["", *_environments(environments, screen, text(trust["level"]))]
    else:
        lines += ["", *tables.sentence(Cell("no environments: nothing was applied on this host", "dim"), screen.paint)]
    if lacking := [text(one) for one in sequence(found.get("not_made") or [])]:
        told = f"declared, but not made: {', '.join(lacking)}; netspace.explain {lacking[0]} tells why"
        lines += tables.sentence(Cell(told, "warn"), screen.paint)
    return [*lines, "", *_links(found["links"], screen)]


def _explanation(data: object, screen: Screen) -> list[str]:
    return explanation.lines(mapping(data), screen.now, screen.paint)


def _inspected(data: object, screen: Screen) -> list[str]:
    return inspected.lines(mapping(data), screen.now, screen.paint)


def _fleet_status(data: object, screen: Screen) -> list[str]:
    return fleet_views.status(mapping(data), screen.now, screen.paint)


def _fleet_list(data: object, screen: Screen) -> list[str]:
    return fleet_views.listed(mapping(data), screen.now, screen.paint)


def _fleet_explanation(data: object, screen: Screen) -> list[str]:
    return fleet_views.explained(mapping(data), screen.now, screen.paint)


def _checked(data: object, screen: Screen) -> list[str]:
    problems = [mapping(one) for one in sequence(mapping(data)["problems"])]
    if not problems:
        return tables.sentence(Cell("no problem was found", "good"), screen.paint)
    counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = tables.sentence(Cell(counted, "bad"), screen.paint)
    for problem in problems:
        lines += tables.sentence(Cell(text(problem["path"]), "head"), screen.paint)
        lines += tables.sentence(Cell(prose(problem["message"])), screen.paint, tables.INDENT + 2, most=6)
    return lines


def _answer(data: object, screen: Screen) -> list[str]:
    return reachability.answer(mapping(data), screen.now, screen.paint)


def _refused(data: object, screen: Screen) -> list[str]:
    found = mapping(data)
    rows = []
    for row in map(mapping, sequence(found["rows"])):
        rank = WELL if row["permitted_now"] is True else BAD if row["why"] else ODD
        times = [Cell(tables.age(row[which], screen.now)) for which in ("first", "last")]
        notes = [Cell("permitted by now", "good")] if rank == WELL else []
        notes += [Cell(prose(row["why"]), "dim")] if row["why"] else []
        rows.append(Row(0, [Cell(text(row["kind"])), Cell(text(row["what"])), Cell(text(row["count"])), *times], notes))
    lines = [
        line
        for kind, why in _texts(found["not_recorded"])
        for line in tables.sentence(Cell(f"{kind}: not recorded: {why}", "dim"), screen.paint)
    ]
    if not rows:
        return [*lines, *tables.sentence(Cell(f"{text(found['refusals_of'])}: no refusal is known"), screen.paint)]
    return [*lines, *tables.table(("KIND", "WHAT", ">COUNT", ">FIRST", ">LAST"), rows, screen.paint)]


def _texts(values: object) -> list[tuple[str, str]]:
    return [(text(name), prose(value)) for name, value in mapping(values).items()]


def _paths(data: object, screen: Screen) -> list[str]:
    return reachability.paths(mapping(data), screen.paint)


def _differences(data: object, screen: Screen) -> list[str]:
    return differences.lines(mapping(data), screen.paint)


def _health(data: object, screen: Screen) -> list[str]:
    found = mapping(data)
    problems = [Cell(prose(one), "bad") for one in sequence(found["problems"])]
    rows = [line for one in problems for line in tables.sentence(one, screen.paint)]
    rows = rows or tables.sentence(Cell("the links are well", "good"), screen.paint)
    counts = ((found["dead"], "rejected by their readers"), (found["late"], "too late"))
    told = [f"{text(count)} {what}" for count, what in counts if count]
    return [*rows, *(tables.sentence(Cell(f"messages: {', '.join(told)}"), screen.paint) if told else [])]


def _is_done(data: Mapping[str, object]) -> bool:
    return data.keys() == {"name", "result", "comment", "changes"}


def _done(data: object, screen: Screen) -> list[str]:
    """Return the lines that show the result of a function that works like a state. Its comment lists all changes."""
    found = mapping(data)
    tone: Tone = "bad" if found["result"] is False else ""
    if not isinstance(found["comment"], str):
        raise TypeError("comment: expected a text")
    lines = [text(line) for line in found["comment"].splitlines()]
    return [screen.paint(one, tone) for line in lines for one in tables.narrow(f"  {line}").splitlines()]


def _is_summary(data: Mapping[str, object]) -> bool:
    rows = data.get("rows")
    return "comment" in data and isinstance(rows, list) and (not rows or trials.known(rows))


def _trials(data: object, screen: Screen) -> list[str]:
    return trials.lines(data, screen.paint)


def _plan(data: object, screen: Screen) -> list[str]:
    return fleet_plans.plan(mapping(data), screen.paint)


def _applied(data: object, screen: Screen) -> list[str]:
    return fleet_plans.applied(mapping(data), screen.paint)


def _compared(data: object, screen: Screen) -> list[str]:
    return fleet_plans.compared(mapping(data), screen.paint)


_VIEWS: tuple[tuple[Callable[[Mapping[str, object]], bool], Callable[[object, Screen], list[str]]], ...] = (
    (_rows_have("state", "restarts", "health", "problem"), _environments),
    (_rows_have("quota", "environments", "running", "reaches"), _tenants),
    (_rows_have("state", "kind", "addresses", "netns"), _interfaces),
    (_rows_have("state", "level", "minimum", "deadline"), _fleet),
    (_rows_have("level", "ek", "enrolled", "expires"), _enrolled),
    (_rows_have("sources", "used_by", "mounted"), _images),
    (_is_volumes, _volumes),
    (_has("tcb_of"), _bases),
    (_has("explains", "summary", "findings", "log"), _explanation),
    (_has("spec", "layer", "netns", "state"), _inspected),
    (_has("digest", "file", "sources", "verity"), _inspected),
    (_has("declared", "live", "drift", "netns"), _inspected),
    (_has("status_of", "summary", "hosts", "nowhere"), _fleet_status),
    (_has("list_of", "environments", "notes"), _fleet_list),
    (_has("explains_in_fleet", "placement", "hosts"), _fleet_explanation),
    (_has("valid", "problems"), _checked),
    (_has("can", "rules", "why_not", "through"), _answer),
    (_has("paths_to", "paths"), _paths),
    (_has("refusals_of", "rows", "not_recorded"), _refused),
    (_is_summary, _trials),
    (_has("compared_with", "differences", "refused"), _differences),
    (_has("plan", "counts", "changes", "moves"), _plan),
    (_has("drift", "counts", "changes", "moves"), _plan),
    (_has("applied", "counts", "done", "failed"), _applied),
    (_has("plans", "dropped", "added", "redeclared"), _compared),
    (_is_done, _done),
    (_has("ok", "problems", "dead", "late"), _health),
    (_has("trust", "environments", "links", "supervised"), _overview),
    (_has("broker", "links", "mailboxes"), _links),
    (_has("level", "verifier", "reason", "expires"), _trust),
)
"""The forms and their views. Lists come first, as an environment may have the name of a key of another form."""
