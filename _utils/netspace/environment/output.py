"""Output of environments' programs: its last lines, their times, and the starts of the program between them.

The journal has them where systemd runs, else the files that netspace's own supervisor writes. In neither is a time or a
start read from what a program wrote. Reads only.
"""

from __future__ import annotations

import bisect
import datetime
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from netspace import files
from netspace.environment.execute import MAX_OUTPUT
from netspace.errors import NetspaceError
from netspace.supervision.daemon import log_times, logs
from netspace.supervision.daemon.log_times import Entry
from netspace.text import harmless

START = "start"
_TAIL = 256  # bytes of log read per wanted line, at first
# systemd's message that a unit was started: SD_MESSAGE_UNIT_STARTED in sd-messages.h.
_STARTED = "39f53479d3a045ac8e11786248231fbf"


class Line(NamedTuple):
    """A line of a program, or a start of the program.

    :param moment: seconds since the epoch; None: it isn't known.
    """

    text: str
    moment: float | None
    start: bool = False

    def stamped(self) -> str:
        """Return the line after its time: ``TIME | text``, or ``TIME = start``. The time is ISO 8601, UTC."""
        stamp = "-"
        if self.moment is not None:
            stamp = datetime.datetime.fromtimestamp(self.moment, datetime.timezone.utc).isoformat("T", "milliseconds")
        return f"{stamp} {'=' if self.start else '|'} {self.text}"


# -- log files ---------------------------------------------------------------------
def in_files(log: Path, count: int, starts: bool) -> list[Line]:
    """Return the last *count* lines of a log and of the files that were rotated from it.

    :param starts: whether starts of the program are lines, too.
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
    """Return the last *count* lines of one file; read no more of it than needed."""
    with files.opened(path) as stream:
        while True:
            end = os.fstat(stream.fileno()).st_size
            entries = log_times.read(path, end)
            size = count * _TAIL
            while True:
                begin = max(end - size, 0)
                stream.seek(begin)
                raw = stream.read(end - begin)
                lines = _split(raw, begin, entries, starts)
                if begin == 0 or len(lines) > count or size >= MAX_OUTPUT:
                    break
                size *= 2
            if os.fstat(stream.fileno()).st_size >= end:  # else it was rotated meanwhile
                return lines[-count:]


def _split(raw: bytes, begin: int, entries: Sequence[Entry], starts: bool) -> list[Line]:
    """Split what a log has from the offset *begin* on into lines; a start ends a line, too.

    The first line, which may have lost its beginning, is left out unless it is the log's first.
    """
    offsets = [entry.offset for entry in entries]
    found: list[Line] = []
    position, end = begin, begin + len(raw)
    boundaries = [entry for entry in entries if entry.start and begin <= entry.offset <= end]
    for boundary in (*boundaries, None):
        stop = end if boundary is None else boundary.offset
        for text in _lines(raw[position - begin : stop - begin]):
            place = bisect.bisect_right(offsets, position) - 1
            if position > begin or begin == 0 or (boundaries and boundaries[0].offset == begin):
                moment = entries[place].moment if place >= 0 else None
                found.append(Line(text.removesuffix(b"\n").decode(errors="replace"), moment))
            position += len(text)
        if boundary is not None and starts:
            found.append(Line(START, boundary.moment, start=True))
    return found


def _lines(raw: bytes) -> list[bytes]:
    """Split at line feeds alone, which stay."""
    parts = raw.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


# -- the journal ---------------------------------------------------------------------
def in_journal(service: str, count: int, begin: float | None, starts: bool) -> list[Line]:
    """Return the last *count* lines in the journal of a service's program, none from before *begin*.

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
    done = subprocess.run(["journalctl", *options, *which], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise NetspaceError(f"journalctl: {done.stderr.decode(errors='replace').strip()}")
    found: list[Line] = []
    left = MAX_OUTPUT
    for raw in done.stdout.splitlines()[:count]:
        line = _of_journal(json.loads(raw))
        left -= len(line.text)
        if left < 0:
            break
        found.append(line)
    return found[::-1]


def _of_journal(entry: dict[str, object]) -> Line:
    moment = int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6
    if entry.get("_PID") == "1" and entry.get("MESSAGE_ID") == _STARTED:
        return Line(START, moment, start=True)
    message = entry.get("MESSAGE")
    if isinstance(message, list):  # bytes that are no UTF-8
        message = bytes(message).decode(errors="replace")
    return Line(str(message or ""), moment)


# -- both ------------------------------------------------------------------------------
def shown(lines: Sequence[Line], times: bool) -> list[str]:
    """Return lines as texts that are harmless to a terminal.

    :param times: whether each begins with its time.
    """
    return [harmless(line.stamped() if times else line.text).replace("\n", " ") for line in lines]
