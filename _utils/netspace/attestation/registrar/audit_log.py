"""Append-only log of the actions of the registrar and the Privacy CA, as a chain of hashes.

A record is a line of JSON: ``{"n", "time", "event", "data", "prev", "hash"}``. *hash* is SHA-256 over the other fields
in canonical form; *prev* is the hash of the previous record. Changed, removed, inserted or reordered records break the
chain at a line that :func:`verify` names. Records that are missing at the end don't break the chain. To find such a
loss, compare the log with a *head* that was noted elsewhere.

The log must contain no secrets, since people read it. A record is on disk before :func:`append` returns. A crash may
leave a half-written record, which no caller relied on. The next append removes this record, and logs the removal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files
from netspace.errors import NetspaceError

FIRST = "0" * 64
MAX_RECORD = 64 * 1024
_KEYS = {"n", "time", "event", "data", "prev", "hash"}
_EVENT = re.compile(r"[a-z][a-z0-9-]{0,63}")


class LogBroken(NetspaceError):
    """A log that differs from the appended records. ``line`` is the first wrong line, counted from 1."""

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {problem}")


@dataclass(frozen=True)
class Head:
    """The end of a log: the number of *records*, and the *hash* of the last record. Operators note it elsewhere."""

    records: int = 0
    hash: str = FIRST


def record(head: Head, when: float, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record that follows *head*.

    :raises NetspaceError: when the event's name is invalid, or the data can't be written.
    """
    if not _EVENT.fullmatch(event):
        raise NetspaceError(f"audit log: {event!r:.80} is not a name of an event: a-z, 0-9 and -, at most 64")
    made: dict[str, Any] = {"n": head.records, "time": int(when), "event": event, "data": dict(data), "prev": head.hash}
    try:
        made["hash"] = _hash(made)
    except (TypeError, ValueError) as err:
        raise NetspaceError(f"audit log: {event}: {err}") from err
    if len(_line(made)) > MAX_RECORD:
        raise NetspaceError(f"audit log: {event}: a record of more than {MAX_RECORD} bytes")
    return made


def verify(lines: Iterable[bytes], noted: Head | None = None) -> Head:
    """Check the chain from its beginning, and return its head.

    :param lines: the file's lines, each with its newline. The function reads them one by one, so a log may be large.
    :param noted: a head that was noted earlier; the log must contain it.
    :raises LogBroken: at the first line that is wrong, or where the log ends before *noted*.
    """
    head = Head()
    met = noted is None or noted == head
    for number, line in enumerate(lines, 1):
        head = _next(head, line, number)
        if noted is not None and head.records == noted.records:
            if head.hash != noted.hash:
                raise LogBroken(number, f"its hash is {head.hash}, {noted.hash} was noted")
            met = True
    if not met:
        had = noted.records if noted else 0
        raise LogBroken(head.records + 1, f"the log ends here, but had {had} records when its head was noted")
    return head


def append(path: Path, event: str, data: Mapping[str, Any], *, when: float | None = None) -> Head:
    """Append a record to the file at *path* (created with mode 0600 if missing), and return the new head.

    Only the last record is checked; :func:`verify` checks all records.

    :raises LogBroken: when the last record is invalid. Nothing is appended to a damaged log.
    :raises NetspaceError: when other users can write to the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o022:
            raise NetspaceError(f"{path}: not a file that its owner alone may write (mode {info.st_mode & 0o7777:04o})")
        moment = time.time() if when is None else when
        head, torn = _end(fd, info.st_size)
        made: list[dict[str, Any]] = []
        if torn:
            os.ftruncate(fd, info.st_size - torn)
            made.append(record(head, moment, "log-repaired", {"bytes": torn}))
            head = Head(head.records + 1, made[-1]["hash"])
        made.append(record(head, moment, event, data))
        raw = b"".join(_line(one) for one in made)
        while raw:
            raw = raw[os.write(fd, raw) :]
        os.fsync(fd)
        if info.st_size == 0:
            files.sync_folder(path.parent)
        return Head(head.records + 1, made[-1]["hash"])
    finally:
        os.close(fd)


def _end(fd: int, size: int) -> tuple[Head, int]:
    """Return the head at the last complete record, and the length of a half-written record after it, in bytes."""
    start = max(0, size - 2 * MAX_RECORD)
    tail = os.pread(fd, size - start, start)
    whole, newline, torn = tail.rpartition(b"\n")
    if not newline:
        if start or len(torn) > MAX_RECORD:
            raise LogBroken(1, "no record within the last bytes")
        return Head(), len(torn)
    last = whole.rpartition(b"\n")[2] + b"\n"
    try:
        found = json.loads(last)
        number, prev = found["n"], found["prev"]
        if type(number) is not int or number < 0:
            raise ValueError("no number")
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise LogBroken(1, f"the last record can't be read: {err}") from err
    return _next(Head(number, str(prev)), last, number + 1), len(torn)


def _next(head: Head, line: bytes, number: int) -> Head:
    if len(line) > MAX_RECORD or not line.endswith(b"\n"):
        raise LogBroken(number, "cut, or too long")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise LogBroken(number, str(err)) from err
    if not isinstance(found, dict) or found.keys() != _KEYS or line != _line(found):
        raise LogBroken(number, "not a record in the log's form")
    if type(found["n"]) is not int or found["n"] != head.records:
        raise LogBroken(
            number,
            f"record {found['n']!r:.20} stands in the place of record {head.records}: a record was removed or added",
        )
    if found["prev"] != head.hash:
        raise LogBroken(number, "does not follow the record before it")
    hashed = found.pop("hash")
    if hashed != _hash(found):
        raise LogBroken(number, "was changed: its content doesn't match its hash")
    return Head(head.records + 1, hashed)


def _hash(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(made)).hexdigest()


def _line(made: Mapping[str, Any]) -> bytes:
    return _canonical(made) + b"\n"


def _canonical(made: Mapping[str, Any]) -> bytes:
    return json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
