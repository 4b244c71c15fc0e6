"""Output of services on hosts without a journal: one file each, bounded in size and number.

netspace's own programs write to the file themselves (opened for appending), so their output needs
no process of netspace's and outlives the daemon. The output of other programs comes through ``relay``.
A file that has grown too large is *copied and truncated*, since a program can't be made to reopen it. Output between
the copy and the truncation (microseconds) is lost. Of a file larger than the limit only the last part is kept.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netspace import files
from netspace.text import printable

SIZE = 10 * 1024 * 1024
OLD = 3
TAIL = 600
# A program may own its log: opening it waits for nobody who has a lease on it, and follows no link.
_CAREFUL = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_log(path: Path) -> int:
    """Open *path* for appending (0600, made if absent, never through a symlink); return the descriptor."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, mode=0o700)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CAREFUL, 0o600)
    os.set_blocking(log, True)
    return log


def append(path: Path, data: bytes) -> None:
    """Write *data* to the log, and rotate the log when it is too large.

    :raises OSError: when the write fails; the part that was written stays.
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
    """Return the size in bytes; 0 if there is no file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def rotate(path: Path, limit: int = SIZE, old: int = OLD) -> bool:
    """Move *path*'s content to ``path.1`` (and that to ``path.2``, up to *old*) if it is above *limit* bytes."""
    total = size(path)
    if total <= limit:
        return False
    for number in range(old, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}.{number - 1}", f"{path}.{number}")
    source = os.open(path, os.O_RDWR | _CAREFUL)
    try:
        target = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CAREFUL, 0o600)
        try:
            offset = total - limit
            # Until its end: also what was written while we copied, but not for ever.
            while offset < total + limit and (sent := os.sendfile(target, source, offset, 1024 * 1024)):
                offset += sent
        finally:
            os.close(target)
        os.ftruncate(source, 0)
    finally:
        os.close(source)
    return True


def remove(path: Path, old: int = OLD) -> None:
    """Remove *path* and the files that were rotated from it."""
    for name in (str(path), *(f"{path}.{number}" for number in range(1, old + 1))):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def tail(path: Path, offset: int) -> str:
    """Return the last line or two written since *offset*, made harmless for a terminal."""
    try:
        with files.opened(path) as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(offset if offset <= end else 0, end - TAIL))
            raw = stream.read(TAIL)
    except OSError:
        return ""
    lines = [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]
    return printable(" | ".join(lines[-2:]), instead="?")
