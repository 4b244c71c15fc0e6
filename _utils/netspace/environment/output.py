"""Output of environments' programs: the last lines with their times, and the program's starts between the lines.

On a host with systemd, the lines come from the journal; on other hosts, from the files that netspace's own supervisor
writes. Times and starts never come from the text that a program wrote. Reads only.
"""

from __future__ import annotations

import bisect
import datetime
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from netspace import files
from netspace.environment.execute import MAX_OUTPUT
from netspace.errors import NetspaceError
from netspace.supervision.daemon import log_times, logs
from netspace.supervision.daemon.log_times import Entry
from netspace.text import harmless

START = "start"
CUT = "(this line is too long to be read from the journal; it and older lines are left out)"
UNREADABLE = "(this line can't be read from the journal)"
_TAIL = 256  # bytes of log read per wanted line, at first
_WIDEST = MAX_OUTPUT  # bytes of an entry of the journal, as JSON; by default, a message of 48 KiB takes 300 KiB at most
_LATEST = 2**37  # seconds since the epoch: a calendar has them
_SAID = 4096  # bytes of journalctl's error that are shown
# systemd's message that a unit was started: SD_MESSAGE_UNIT_STARTED in sd-messages.h.
_STARTED = "39f53479d3a045ac8e11786248231fbf"


class Line(NamedTuple):
    """A line of a program, or a start of the program.

    :param moment: its time in seconds since the epoch; None if unknown.
    """

    text: str
    moment: float | None
    start: bool = False

    def stamped(self) -> str:
        """Return ``TIME | text`` for a line, or ``TIME = start`` for a start. The time is ISO 8601, UTC."""
        stamp = "-"
        if self.moment is not None:
            stamp = datetime.datetime.fromtimestamp(self.moment, datetime.timezone.utc).isoformat("T", "milliseconds")
        return f"{stamp} {'=' if self.start else '|'} {self.text}"


# -- log files ---------------------------------------------------------------------
def in_files(log: Path, count: int, starts: bool) -> list[Line]:
    """Return the last *count* lines of a log and of the files that were rotated from it.

    :param starts: whether to return starts of the program, too.
    """
    found: list[Line] = []
    for path in logs.names(log):
        if len(found) >= count:
            break
        try:
            found = _in_file(path, count - len(found), starts) + found
        except FileNotFoundError:
            continue
    return found


def _in_file(path: Path, count: int, starts: bool) -> list[Line]:
    """Return the last *count* lines of one file. Read no more of the file than needed."""
    with files.opened(path) as stream:
        while True:
            end = os.fstat(stream.fileno()).st_size
            entries = log_times.read(path, end)
            size = count * _TAIL
            while True:
                begin = max(end - size, 0)
                stream.seek(begin)
                raw = stream.read(end - begin)
                lines = _last(raw, begin, entries, starts, count)
                if begin == 0 or len(lines) == count or size >= MAX_OUTPUT:
                    break
                size *= 2
            if os.fstat(stream.fileno()).st_size >= end:  # else it was rotated meanwhile
                return lines


def _last(raw: bytes, begin: int, entries: Sequence[Entry], starts: bool, count: int) -> list[Line]:
    """Return the last *count* lines of a log after the offset *begin*. A start of the program also ends a line.

    A line's time is the time of its last byte. (With the time of the first byte, a program could make a line look old
    by writing its first byte early.) The first line after *begin* may be incomplete, so it is left out if it is not the
    log's first line.

    The function builds only the lines that it returns, because a program may have written a huge number of empty lines.
    """
    offsets = [entry.offset for entry in entries]
    found: list[Line] = []  # the last first
    stop = len(raw)
    boundaries = [entry for entry in entries if entry.start and begin <= entry.offset <= begin + len(raw)]
    whole = begin == 0 or (bool(boundaries) and boundaries[0].offset == begin)
    for boundary in (*reversed(boundaries), None):
        least = 0 if boundary is None else boundary.offset - begin
        while stop > least and len(found) < count:
            first = max(raw.rfind(b"\n", least, stop - 1) + 1, least)
            if first > 0 or whole:
                place = bisect.bisect_right(offsets, begin + stop - 1) - 1
                moment = entries[place].moment if place >= 0 else None
                found.append(Line(raw[first:stop].removesuffix(b"\n").decode(errors="replace"), moment))
            stop = first
        if len(found) == count:
            break
        if boundary is not None and starts:
            found.append(Line(START, boundary.moment, start=True))
    return found[::-1]


# -- the journal ---------------------------------------------------------------------
def in_journal(service: str, count: int, begin: float | None, starts: bool) -> list[Line]:
    """Return the last *count* lines of a service's program in the journal, without lines from before *begin*.

    :raises NetspaceError: when the journal can't be read.
    """
    # The fields with an underscore are the journal's own: no program can set them.
    which = [f"_SYSTEMD_UNIT={service}.service", f"SYSLOG_IDENTIFIER={service}"]
    if starts:
        which += ["+", "_PID=1", f"UNIT={service}.service", f"MESSAGE_ID={_STARTED}"]
    options = ["--since", f"@{begin:.6f}"] if begin is not None else []
    # Newest first: with --since, some versions of journalctl count --lines from the oldest.
    options += ["--reverse", "--lines", str(count), "--no-pager", "--quiet", "--all"]
    options += ["--output", "json", "--output-fields", "MESSAGE,MESSAGE_ID,_PID"]
    with open(os.memfd_create("journalctl"), "r+b") as said:  # a pipe that nobody reads would fill, and block it
        with subprocess.Popen(
            ["journalctl", *options, *which], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process:
            try:
                assert process.stdout is not None
                found, ended = _of_stream(process.stdout, count)
                failed = ended and process.wait() != 0
            finally:
                process.kill()
        if failed:
            said.seek(0)
            raise NetspaceError(f"journalctl: {said.read(_SAID).decode(errors='replace').strip()}")
    return found[::-1]


def _of_stream(stream: IO[bytes], count: int) -> tuple[list[Line], bool]:
    """Return up to *count* lines of journalctl's output (JSON), and whether the output has no more lines.

    A message may have any size; in a binary message, each byte becomes a number in JSON. So this function limits what
    it reads. If an entry has more than ``_WIDEST`` bytes, the function returns a line about this in its place, and
    stops reading.
    """
    found: list[Line] = []
    left = MAX_OUTPUT
    while len(found) < count:
        raw = stream.readline(_WIDEST)
        if not raw.endswith(b"\n"):
            if len(raw) < _WIDEST:
                return found, True
            found.append(Line(CUT, None))
            break
        line = _of_journal(raw)
        left -= len(line.text)
        if left < 0:
            break
        found.append(line)
    return found, False


def _of_journal(raw: bytes) -> Line:
    """Return the line of a JSON entry; :data:`UNREADABLE` for an entry that can't be parsed."""
    try:
        entry = json.loads(raw)
        moment = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        if not 0 <= moment < _LATEST:
            return Line(UNREADABLE, None)
        if entry.get("_PID") == "1" and entry.get("MESSAGE_ID") == _STARTED:
            return Line(START, moment, start=True)
        message = entry.get("MESSAGE")
        if isinstance(message, list):  # bytes that are no UTF-8
            message = bytes(message).decode(errors="replace")
        return Line(str(message or ""), moment)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Line(UNREADABLE, None)


# -- both ------------------------------------------------------------------------------
def shown(lines: Sequence[Line], times: bool) -> list[str]:
    """Return lines as texts with escaped control characters.

    :param times: whether each line begins with its time.
    """
    return [harmless(line.stamped() if times else line.text).replace("\n", " ") for line in lines]
