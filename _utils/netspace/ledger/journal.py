"""Ledger of this host: its file in memory, and the NV index that is extended by each line.

A line is written first, and then the index is extended by it. So a program that is killed in between leaves a line that
the index lacks; the next call extends the index by it. A TPM that is busy or fails leaves such lines, too, and the
start of the environment doesn't wait for it. Evidence is made only after the index has all lines.

The folder is in memory, so the file is gone after a reboot, and so is the value of the index. ``head.json`` has the
position up to which the index is extended. ``ledger.json`` among the records of attestation says that there is a
ledger; without that file each function does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.ledger import entries, nv_index
from netspace.ledger.entries import Run, State
from netspace.ledger.setting import Setting, enabled, setting
from netspace.log import Log

log = Log(__name__)

# Seconds that a start waits for another process's use of the TPM, and for the TPM's answers.
PATIENCE, ANSWER = 1.0, 3.0


@dataclass(frozen=True)
class _Head:
    """Position up to which the index is extended: lines, chain, bytes of the file, and the last declaration."""

    boot: str
    count: int = 0
    head: bytes = entries.START
    size: int = 0
    declared: str = ""
    full: bool = False


def folder(layout: Layout) -> Path:
    return layout.run / "ledger"


def note_starts(layout: Layout, runs: Mapping[str, Run]) -> None:
    """Record that environments are about to be started.

    :raises NetspaceError: when that can't be written. Then none of them may be started.
    """
    if runs and enabled(layout):
        _append(layout, lambda _: entries.started(runs, int(time.time())))


def note_ends(layout: Layout, names: Collection[str]) -> None:
    """Record that environments have ended. Environments that aren't running according to the ledger are skipped.

    If this fails, no error is raised: :func:`settle` records the ends later.
    """
    if names and enabled(layout):
        try:
            over = current(layout).running.keys() & set(names)
            if over:
                _append(layout, lambda _: entries.ended(over, int(time.time())))
        except NetspaceError as err:
            log.warning("%s", err)


def note_declaration(layout: Layout, digest: str) -> None:
    """Record the digest of the host's declaration, if it differs from the last one.

    :raises NetspaceError: when that can't be written.
    """
    if enabled(layout):
        _append(layout, lambda head: [] if head.declared == digest else [entries.declared(digest)])


def settle(layout: Layout, alive: Mapping[str, Callable[[], Run | None]]) -> None:
    """Record starts and ends that nobody recorded, such as those of programs that ended by themselves.

    The caller holds ``layout.lock``, so that no environment is about to be started.

    :param alive: the environments that run or will be started again; each with a function that describes its run.
    :raises NetspaceError: when that can't be written.
    """
    if enabled(layout):
        known = current(layout).running
        note_ends(layout, known.keys() - alive.keys())
        runs = {name: alive[name]() for name in sorted(alive.keys() - known.keys())}
        note_starts(layout, {name: run for name, run in runs.items() if run is not None})


def current(layout: Layout) -> State:
    """Return the state of the ledger after its last line.

    :raises StateError: when the file is damaged.
    """
    try:
        return entries.last(entries.split(content(layout)))
    except entries.Unreadable as err:
        raise _damaged(layout, err) from err


def content(layout: Layout) -> bytes:
    """Return the lines of the ledger as bytes; empty if it has no line yet."""
    try:
        return files.read(folder(layout) / "log", entries.MOST_BYTES + 1)
    except FileNotFoundError:
        return b""


def filled(layout: Layout, names: Collection[str]) -> tuple[float, float]:
    """Return two shares of the ledger's space, from 0 to 1: of all lines, and of the lines about these environments."""
    raw = content(layout)
    own = sum(raw.count(b'"%s"' % name.encode()) for name in names)
    return max(raw.count(b"\n") / entries.MOST_LINES, len(raw) / entries.MOST_BYTES), own / entries.MOST_LINES


def forget(layout: Layout) -> None:
    """Delete the ledger of this boot."""
    with files.locked(folder(layout) / "lock"):
        for name in ("log", "head.json"):
            files.remove(folder(layout) / name)


def remove(layout: Layout) -> None:
    """Delete the ledger with its folder."""
    forget(layout)
    shutil.rmtree(folder(layout), ignore_errors=True)


def complete(layout: Layout) -> None:
    """Begin the ledger if this boot has none yet, and extend the index by each line that it lacks.

    If the TPM fails, no error is raised: the next call tries again. Until then, evidence proves fewer lines.

    :raises NetspaceError: when the file is damaged.
    """
    _append(layout, lambda _: [])


def _append(layout: Layout, make: Callable[[_Head], list[bytes]]) -> None:
    """Write the lines that *make* returns, and extend the index."""
    chosen = setting(layout)
    if chosen is None:
        return
    place = folder(layout)
    try:
        with files.locked(place / "lock"):
            head = _head(layout, _boot(layout))
            lines, pending = make(head), _pending(place / "log", head)
            if not head.count and not pending:
                files.remove(place / "log")  # of an earlier boot
                lines = [entries.boot(head.boot), *lines]
            lines = _fitting(head, pending, lines)
            if lines:
                _write(place / "log", b"".join(lines))
            if lines or pending:
                _extend(layout, chosen, head, [*pending, *lines], bool(pending))
    except OSError as err:
        raise NetspaceError(f"the ledger of runs ({place}): {err}") from err


def _fitting(head: _Head, pending: Sequence[bytes], lines: Sequence[bytes]) -> list[bytes]:
    """Return *lines* if they fit into the ledger; if not, only the line that says that the ledger is full."""
    if head.full or entries.full() in pending:
        return []
    room = entries.MOST_LINES - head.count - len(pending)
    left = entries.MOST_BYTES - head.size - sum(map(len, pending)) - len(entries.full())
    if len(lines) <= room and sum(map(len, lines)) <= left:
        return list(lines)
    return [entries.full()]


def _extend(layout: Layout, chosen: Setting, head: _Head, lines: Sequence[bytes], doubtful: bool) -> None:
    """Extend the index by *lines*, which follow *head*, and save the new position.

    :param doubtful: whether the index may have some of these lines already: a process was killed, or the TPM failed.
    """
    after = head
    try:
        if chosen.tpm is None:
            for line in lines:
                after = _after(after, line)
        else:
            with using(layout, chosen.tpm) as send:
                value = (nv_index.read(send, chosen.auth) or entries.START) if doubtful else head.head
                there = _position(head, lines, value)
                if there is None:
                    raise nv_index.IndexFailure(
                        "the NV index of the ledger has another value than the ledger's lines; restart the host, and "
                        "find out who extended the index or defined it again"
                    )
                for number, line in enumerate(lines):
                    if number >= there:
                        nv_index.extend(send, chosen.auth, entries.measured(line))
                    after = _after(after, line)
    except nv_index.IndexFailure as err:
        log.warning("the ledger of runs: %s; the index is extended later", err)
    finally:
        if after != head:
            _save(layout, after)


def _position(head: _Head, lines: Sequence[bytes], value: bytes) -> int | None:
    """Return by how many of *lines* the index is extended already; None if no number of them leads to its value."""
    reached = head.head
    for number, line in enumerate(lines):
        if reached == value:
            return number
        reached = entries.extended(reached, line)
    return len(lines) if reached == value else None


def _after(head: _Head, line: bytes) -> _Head:
    told, count = head.declared, head.count
    if line.startswith(b'{"declared":"'):
        told = str(json.loads(line)["declared"])
    value, full = entries.extended(head.head, line), line == entries.full()
    return _Head(head.boot, count + 1, value, head.size + len(line), told, full)


@contextmanager
def using(layout: Layout, path: Path, patience: float = PATIENCE) -> Iterator[nv_index.Send]:
    """Open the TPM, under the lock that all of netspace's uses of the TPM take.

    :param patience: seconds to wait for other uses.
    :raises IndexFailure: when another process uses the TPM for too long.
    """
    lock, deadline = layout.records("attestation") / "tpm.lock", time.monotonic() + patience

    def busy() -> nv_index.IndexFailure | None:
        late = time.monotonic() > deadline
        return nv_index.IndexFailure(f"the TPM is in use by another process (it holds {lock})") if late else None

    fd = files.held(lock, busy)
    try:
        with nv_index.opened(path, max(ANSWER, patience)) as send:
            yield send
    finally:
        os.close(fd)


def _head(layout: Layout, boot: str) -> _Head:
    """Return the position up to which the index is extended. In a new boot, that is the beginning."""
    record = files.read_json(folder(layout) / "head.json")
    if record is None or record.get("boot") != boot:
        return _Head(boot)
    try:
        count, size, full = record["count"], record["size"], record["full"]
        if type(count) is int and type(size) is int and type(full) is bool and count > 0 and size > 0:
            return _Head(boot, count, bytes.fromhex(record["head"]), size, str(record["declared"]), full)
    except (KeyError, TypeError, ValueError) as err:
        raise _damaged(layout, err) from err
    raise _damaged(layout, ValueError("head.json has no position"))


def _save(layout: Layout, head: _Head) -> None:
    record = {"boot": head.boot, "count": head.count, "head": head.head.hex(), "size": head.size}
    files.write_json(folder(layout) / "head.json", {"v": 1, **record, "declared": head.declared, "full": head.full})


def _pending(path: Path, head: _Head) -> list[bytes]:
    """Return the lines after *head*. A line that a killed process wrote in part is cut off.

    A file of an earlier boot has no such lines.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    with open(fd, "r+b") as stream:
        stream.seek(head.size)
        raw = stream.read(entries.MOST_BYTES + 1)
        whole = raw.rfind(b"\n") + 1
        if whole != len(raw):
            stream.truncate(head.size + whole)
        lines = [line + b"\n" for line in raw[:whole].split(b"\n")[:-1]]
    return lines if head.count or lines[:1] == [entries.boot(head.boot)] else []


def _write(path: Path, raw: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while raw:
            raw = raw[os.write(fd, raw) :]
    finally:
        os.close(fd)


def _boot(layout: Layout) -> str:
    """Return the kernel's id of this boot.

    :raises NetspaceError: when it can't be read.
    """
    try:
        return files.boot_id(layout.root)
    except OSError as err:
        raise NetspaceError(f"the ledger of runs: the id of this boot can't be read: {err}") from err


def _damaged(layout: Layout, err: Exception) -> StateError:
    return StateError(f"{folder(layout)}: not a ledger of runs ({err}); restart the host to begin a new one")
