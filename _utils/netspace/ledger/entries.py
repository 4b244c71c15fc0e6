"""Lines of the ledger: their form, their strict parser, and their replay. Pure.

Each line is canonical JSON and ends with a newline. The kinds of lines are::

    {"boot":"<id of the boot>"}                               the first line, and no other
    {"declared":"<sha256>"}                                   the digest of the host's whole declaration
    {"at":1790000000,"start":{"web":["<image>","<configuration>","<certificate>"]}}
    {"at":1790000000,"end":["web"]}
    {"full":true}                                             the last line: later runs are not recorded

A digest is a SHA-256 in hex. The digest of the certificate is empty for an environment without links.

The *head* of the ledger is a hash chain: 32 zero bytes at first, then SHA-256(head || SHA-256(line)) for each line. The
TPM's NV index of the type EXTEND computes the same. So a head proves each line before it, and the order of the lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

START = bytes(32)
MOST_LINES = 65_536
MOST_BYTES = 16 * 1024 * 1024
MOST_LINE = 64 * 1024
# Environments in one line.
TOGETHER = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_BOOT = 64


class Unreadable(ValueError):
    """Error: bytes that are no ledger, or lines that can't follow each other."""


class Run(NamedTuple):
    """One run of an environment, from a start to the end that was recorded.

    :param image: SHA-256 of the image.
    :param configuration: SHA-256 of the runtime's configuration.
    :param certificate: SHA-256 of the certificate by which the environment logs in; empty: it has none.
    :param at: time of the start by the host's clock, in seconds since 1970.
    :param number: number of the line, from 0 on.
    """

    image: str
    configuration: str
    certificate: str = ""
    at: int = 0
    number: int = 0


@dataclass(frozen=True)
class State:
    """Position in a ledger, and the content of the lines before it.

    :param count: number of the lines.
    :param head: the hash chain's value after these lines.
    :param declared: digest of the last declaration; empty: none is recorded.
    :param running: the runs that have not ended, by environment.
    :param full: whether later runs are not recorded.
    """

    count: int = 0
    head: bytes = START
    boot: str = ""
    declared: str = ""
    running: Mapping[str, Run] = field(default_factory=dict)
    full: bool = False


def extended(head: bytes, line: bytes) -> bytes:
    """Return the chain's value after one more line."""
    return hashlib.sha256(head + measured(line)).digest()


def measured(line: bytes) -> bytes:
    """Return the digest of a line, by which the NV index is extended."""
    return hashlib.sha256(line).digest()


def boot(identifier: str) -> bytes:
    return _line({"boot": identifier})


def declared(digest: str) -> bytes:
    return _line({"declared": digest})


def started(runs: Mapping[str, Run], at: int) -> list[bytes]:
    """Return the lines that record starts.

    :param at: the time, in seconds since the epoch.
    """
    return [
        _line({"at": at, "start": {name: [runs[name].image, runs[name].configuration, runs[name].certificate]
                                   for name in names}})
        for names in _parts(sorted(runs))
    ]  # fmt: skip


def ended(names: Iterable[str], at: int) -> list[bytes]:
    """Return the lines that record ends.

    :param at: the time, in seconds since the epoch.
    """
    return [_line({"at": at, "end": part}) for part in _parts(sorted(set(names)))]


def full() -> bytes:
    return _line({"full": True})


def _parts(names: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(names), TOGETHER):
        yield names[first : first + TOGETHER]


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def last(lines: Iterable[bytes], start: State | None = None) -> State:
    """Return the state after all of *lines*. Parameters and errors are those of :func:`replay`."""
    state = start or State()
    for after in replay(lines, state):
        state = after
    return state


def split(raw: bytes) -> list[bytes]:
    """Return the lines in *raw*, each with its newline.

    :raises Unreadable: when *raw* is too large, or its last line is not whole.
    """
    if len(raw) > MOST_BYTES:
        raise Unreadable(f"{len(raw)} bytes; at most {MOST_BYTES} are accepted")
    if raw and not raw.endswith(b"\n"):
        raise Unreadable("the last line is not whole")
    lines = raw.split(b"\n")[:-1]
    if len(lines) > MOST_LINES + 1:
        raise Unreadable(f"{len(lines)} lines; at most {MOST_LINES + 1} are accepted")
    return [line + b"\n" for line in lines]


def replay(lines: Iterable[bytes], start: State | None = None) -> Iterator[State]:
    """Yield the state after each line.

    The mapping of runs is the same object in all states, so it shows the runs of the last state that was yielded.

    :param start: the state before the first of these lines; by default, the beginning.
    :raises Unreadable: when a line is not canonical, or can't follow the lines before it.
    """
    state = start or State()
    running = dict(state.running)
    for line in lines:
        number, content = state.count, _content(line)
        told, finished = state.declared, state.full
        identifier = state.boot
        if finished:
            raise Unreadable(f"line {number}: follows the last possible line")
        if number > MOST_LINES:
            raise Unreadable(f"line {number}: at most {MOST_LINES + 1} lines are accepted")
        if (number == 0) != ("boot" in content):
            raise Unreadable(f"line {number}: the first line names the boot, and no other does")
        if "boot" in content:
            identifier = content["boot"]
        elif "declared" in content:
            told = content["declared"]
        elif "full" in content:
            finished = True
        elif "start" in content:
            for name, (image, configuration, certificate) in content["start"].items():
                running[name] = Run(image, configuration, certificate, content["at"], number)
        else:
            for name in content["end"]:
                running.pop(name, None)
        state = State(number + 1, extended(state.head, line), identifier, told, running, finished)
        yield state


def _content(line: bytes) -> dict[str, Any]:
    """Return the content of a line.

    :raises Unreadable: when the line is not exactly as this module writes lines.
    """
    if len(line) > MOST_LINE:
        raise Unreadable(f"a line of {len(line)} bytes; at most {MOST_LINE} are accepted")
    try:
        found = json.loads(line)
        same = isinstance(found, dict) and _line(found) == line
    except (ValueError, RecursionError) as err:
        raise Unreadable(f"a line that is not JSON: {err}") from err
    if not same or not _sound(found):
        raise Unreadable("a line of an unknown form")
    return dict(found)


def _sound(content: dict[str, Any]) -> bool:
    keys = set(content)
    if keys == {"boot"}:
        told = content["boot"]
        return isinstance(told, str) and 0 < len(told) <= MOST_BOOT and told.isascii() and told.isprintable()
    if keys == {"declared"}:
        return _is_digest(content["declared"])
    if keys == {"full"}:
        return content["full"] is True
    if keys not in ({"at", "start"}, {"at", "end"}):
        return False
    at = content["at"]
    if type(at) is not int or not 0 <= at < 2**40:
        return False
    if "end" in content:
        names = content["end"]
        return isinstance(names, list) and all(map(_is_name, names)) and names == sorted(set(names)) != []
    runs = content["start"]
    return (
        isinstance(runs, dict)
        and 0 < len(runs) <= TOGETHER
        and all(map(_is_name, runs))
        and all(map(_is_run, runs.values()))
    )


def _is_run(digests: Any) -> bool:
    if not isinstance(digests, list) or len(digests) != 3:
        return False
    image, configuration, certificate = digests
    return _is_digest(image) and _is_digest(configuration) and (certificate == "" or _is_digest(certificate))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None
