"""Logs of services on hosts without a journal: one file per service, limited in size and number.

netspace's own programs have their log open for appending, so their output needs no relaying process, and continues
without the daemon. ``relay`` writes the output of detached programs. A file that is too large is *copied and
truncated*, since a program can't be made to reopen its log. Output between the copy and the truncation (microseconds)
is lost. If a file is larger than the limit, only its last part is kept.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netspace import files
from netspace.supervision.daemon import log_times
from netspace.text import printable

SIZE = 10 * 1024 * 1024
OLD = 3
TAIL = 600
# Flags for a log that a program may own: open(2) doesn't wait for a lease, and doesn't follow a symlink.
_CAREFUL = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_log(path: Path) -> int:
    """Open *path* for appending (0600, created if absent, never through a symlink); return the descriptor."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, mode=0o700)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CAREFUL, 0o600)
    os.set_blocking(log, True)
    return log


def append(path: Path, data: bytes) -> None:
    """Write *data* to the log, and rotate the log if it is too large.

    :raises OSError: the write failed; a part of *data* may have been written.
    """
    log = open_log(path)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(log, left) :]
        large = os.fstat(log).st_size > SIZE
    finally:
        os.close(log)
    if large:
        rotate(path)


def size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if the file does not exist."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def rotate(path: Path, limit: int = SIZE, old: int = OLD) -> bool:
    """Move the content to ``path.1`` if it is above *limit* bytes. Older content goes to ``path.2``, up to *old*."""
    total = size(path)
    if total <= limit:
        return False
    for number in range(old, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            log_times.moved(Path(f"{path}.{number - 1}"), Path(f"{path}.{number}"))
            os.rename(f"{path}.{number - 1}", f"{path}.{number}")
    source = os.open(path, os.O_RDWR | _CAREFUL)
    try:
        target = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CAREFUL, 0o600)
        try:
            offset = total - limit
            # Copy to the end of the file, with output written meanwhile, but only up to a bound.
            while offset < total + limit and (sent := os.sendfile(target, source, offset, 1024 * 1024)):
                offset += sent
        finally:
            os.close(target)
        log_times.copied(path, Path(f"{path}.1"), total, total - limit)
        os.ftruncate(source, 0)
    finally:
        os.close(source)
    return True


def remove(path: Path, old: int = OLD) -> None:
    """Remove *path* and the files that were rotated from it."""
    for name in names(path, old):
        log_times.remove(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def names(path: Path, old: int = OLD) -> list[Path]:
    """Return the path of the log, then the paths of the files rotated from it, the latest first."""
    return [path, *(Path(f"{path}.{number}") for number in range(1, old + 1))]


def tail(path: Path, offset: int) -> str:
    """Return the last one or two lines written since *offset*, without control characters."""
    try:
        with files.opened(path) as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(offset if offset <= end else 0, end - TAIL))
            raw = stream.read(TAIL)
    except OSError:
        return ""
    lines = [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]
    return printable(" | ".join(lines[-2:]), instead="?")
