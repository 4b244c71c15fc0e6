"""The screen for ``netspace.explain``: at most 24 lines of 80 columns. Pure.

The explanation comes from another host, and an operator might copy a command from it. So :func:`lines` shows only
commands in the form of netspace's own. For any other command it raises, and the caller shows the return in another way.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Tone, prose, text

_NAME = r"[a-z0-9][a-z0-9_-]*"
COMMAND = re.compile(
    r"state\.apply netspace|netspace_attestation\.status|netspace_link\.dead_letters"
    rf"|netspace\.(?:explain|suggest) {_NAME}|netspace_interface\.inspect {_NAME}"
    rf"|netspace_environment\.(?:logs|retry|start|wait) {_NAME}"
)
"""The commands that a remedy may contain. They give no rights, and remove nothing."""
ADVICE: Mapping[str, str] = {
    "broker-down": "if it is this host's own broker, apply again, which starts it",
    "change-waits": "apply it",
    "cut-off": "correct its program; its log may tell more",
    "dead-letters": "look at the dead letters, then send them again or discard them",
    "declared-stopped": "to run it, declare state: running, and apply",
    "ended": "its log may tell why",
    "entrance-shut": "an apply repairs what this host can",
    "failing": "its log may tell why",
    "forwarder-down": "an apply starts it again",
    "frozen": "an apply continues it",
    "host-unreachable": "see whether that host and its broker run",
    "image-missing": "put the image where the declaration says, and apply",
    "impossible": "correct the declaration or the image, and apply",
    "interface-differs": "an apply repairs it",
    "interface-missing": "an apply makes it again",
    "link-down": "an apply repairs what this host can",
    "name-absent": "correct the name in allow, and apply",
    "name-new": "wait some seconds; then see its addresses:",
    "name-refused": "see its addresses, and why they are refused:",
    "name-unanswered": "see whether the host's resolver answers",
    "not-applied": "apply it",
    "peer-down": "an apply starts it again",
    "oom": "raise limits:memory in its declaration, and apply",
    "record-damaged": "apply the declaration again",
    "refused": "see the declaration that would permit it:",
    "starting": "wait for it:",
    "stopped-by-operator": "to start it:",
    "unsupervised": "apply again, which starts the supervisor",
    "unwatched": "apply again, which starts the watch",
    "update-taken-back": "correct the declaration or the image; to try the same again:",
    "waits": "see why that environment isn't ready",
    "withheld": "raise the host's trust, or demand less in the declaration",
}
"""The remedy for each code. The texts are this module's own, because a host could return any text."""
LINES = 24
_KEY = 11
_TONES: Mapping[str, Tone] = {"error": "bad", "warning": "warn", "note": "dim"}
_MOST = 4
"""The most links, findings and lines of a log that are shown."""


def lines(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines of the screen.

    :param now: seconds since the epoch.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    findings = [tables.mapping(one) for one in tables.sequence(found["findings"])]
    first = _TONES.get(text(findings[0]["severity"]), "bad") if findings else "good"
    shown = tables.sentence(Cell(prose(found["summary"]), first), paint, most=2)
    for key, value in _facts(found, now):
        shown += _fact(key, Cell(value), paint, 1)
    shown += _links(found, paint)
    told = bool(findings) and text(findings[0]["severity"]) != "warning"  # by the summary
    for one in findings[told:_MOST]:
        shown += _fact("also", Cell(prose(one["text"]), _TONES.get(text(one["severity"]), "bad")), paint, 2)
    help_ = _help(findings, paint)
    room = max(LINES - 1 - len(shown) - len(help_), 1)
    log = _last_lines(found)[-room:]
    for line in log:
        shown += _fact("log", Cell(line, "dim"), paint, 2 if 2 * len(log) <= room else 1)
    return [*shown, *help_]


def _last_lines(found: Mapping[str, object]) -> list[str]:
    """Return the last lines of the log; equal ones in a row are one, with their number."""
    written = [text(line.expandtabs(4) if isinstance(line, str) else line) for line in tables.sequence(found["log"])]
    counted = [(line, len(list(same))) for line, same in itertools.groupby(written[-_MOST:])]
    return [line if times == 1 else f"{line} ({times} times)" for line, times in counted]


def _facts(found: Mapping[str, object], now: float) -> Iterable[tuple[str, str]]:
    state, health = text(found["state"]), text(found["health"])
    since = tables.age(found.get("since"), now) if state != "stopped" else ""
    yield "state", ", ".join(filter(None, [state, health, f"for {since}" if since else ""]))
    yield (
        "declared",
        f"{text(found['declared_state'])}, restart {text(found['restart'])}; in pillar: {text(found['pillar'])}",
    )
    yield "image", " ".join(filter(None, [text(found["image"]), text(found["digest"])[:19]]))
    trust = tables.mapping(found["trust"])
    yield "trust", f"{text(trust['level'])}, {'withheld' if trust['withheld'] else 'enough'}"
    if after := tables.mapping(found["after"]):
        yield (
            "after",
            ", ".join(f"{text(name)} ({'ready' if ready is True else 'not ready'})" for name, ready in after.items()),
        )
    last, restarts = text(found["last_exit"]), text(found["restarts"])
    if last or restarts != "0":
        yield "last exit", f"{last or 'unknown'}, restarted {restarts} times"
    if limits := tables.mapping(found["limits"]):
        yield "memory", _memory(limits)
        yield "processes", _processes(limits)
    if interface := tables.mapping(found["interface"]):
        addresses = ", ".join(text(one) for one in tables.mapping(interface["addresses"]).values())
        yield "interface", ", ".join(filter(None, [text(interface["kind"]), text(interface["state"]), addresses]))


def _memory(limits: Mapping[str, object]) -> str:
    memory = tables.mapping(limits["memory"])
    told = f"{tables.size(memory['used']) or '-'} of {tables.size(memory['limit'])}"
    if hits := tables.number(memory["hits"]):
        told += f", {hits:.0f} times at the limit"
    if kills := tables.number(limits["oom_kills"]):
        told += f", {kills:.0f} OOM kills"
    return told


def _processes(limits: Mapping[str, object]) -> str:
    pids, cpus = tables.mapping(limits["pids"]), tables.mapping(limits["cpus"])
    told = f"{text(pids['used']) or '-'} of {text(pids['limit'])}"
    if hits := tables.number(pids["hits"]):
        told += f", {hits:.0f} refused"
    if (seconds := tables.number(cpus["seconds"])) is not None:
        told += f"; {tables.span(seconds)} of processor time"
    if (waited := tables.number(cpus["throttled"])) is not None and waited >= 1:
        told += f", {tables.span(waited)} held back by limits:cpus"
    return told


def _links(found: Mapping[str, object], paint: Paint) -> list[str]:
    links = sorted(
        (tables.mapping(one) for one in tables.sequence(found["links"])), key=lambda link: link["state"] == "active"
    )
    shown = []
    for link in links[:_MOST]:
        ends = f"{text(link['from'])} -> {text(link['to'])}"
        waiting, readers = text(link.get("waiting")) or "?", text(link.get("readers")) or "?"
        read = "1 reader" if readers == "1" else f"{readers} readers"
        told = f"{ends}, {text(link['pattern'])}: {text(link['state'])}, {waiting} waiting, {read}"
        shown += _fact("link", Cell(told, "" if link["state"] == "active" else "bad"), paint, 1)
    if len(links) > _MOST:
        shown += _fact("", Cell(f"and {len(links) - _MOST} more: netspace_link.list", "dim"), paint, 1)
    return shown


def _help(findings: list[Mapping[str, object]], paint: Paint) -> list[str]:
    """Return the remedy of the first finding that has a remedy."""
    for one in findings:
        command = one["command"]
        if not isinstance(command, str) or (command and not COMMAND.fullmatch(command)):
            raise ValueError("not a command of netspace")
        if advice := ADVICE[text(one["code"])]:
            shown = _fact("do", Cell(advice, "head"), paint, 2)
            return [*shown, *_fact("", Cell(command, "head"), paint, 1)] if command else shown
    return []


def _fact(key: str, value: Cell, paint: Paint, most: int) -> list[str]:
    room = tables.WIDTH - tables.INDENT - _KEY
    wrapped = tables.wrap(value.text, room, most) or [""]
    heads = [key, *[""] * (len(wrapped) - 1)]
    return [
        " " * tables.INDENT + head.ljust(_KEY) + paint(line, value.tone)
        for head, line in zip(heads, wrapped, strict=True)
    ]
