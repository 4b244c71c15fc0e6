"""Notes of programs: lines in a file that a killed program leaves behind as far as it got. Also the messages' bodies.

A sender's file has ``t NUMBER`` before each attempt, then ``c NUMBER AGAIN`` (confirmed) or ``f NUMBER UNKNOWN``
(failed). A receiver's file has ``b`` when a program begins, and ``r LINK NUMBER REDELIVERED INTACT`` for each message,
before it is acknowledged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from histories.judge import Began, Confirmed, Failed, Received, Tried

LARGEST = 2048
_SMALL = 64


def body(link: str, number: int) -> bytes:
    """Return the body of a message: its link and number, and text that follows from these; some are larger."""
    head = f"{link} {number} ".encode()
    filling = hashlib.sha256(head).hexdigest().encode()
    return head + filling * (LARGEST // _SMALL if number % 50 == 0 else 1)


def named(content: bytes) -> tuple[str, int, bool]:
    """Return the link and number that a body claims, and whether the body is exactly theirs."""
    link, _, rest = content[:128].partition(b" ")
    digits = rest.partition(b" ")[0]
    if not digits.isdigit() or len(digits) > 12:
        return link.decode("ascii", "replace"), -1, False
    told = link.decode("ascii", "replace"), int(digits)
    return (*told, body(*told) == content)


class Notes:
    """A file of notes. Each note is in the file when the method returns, even if the program is killed then."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _write(self, line: str) -> None:
        os.write(self._fd, line.encode())

    def began(self) -> None:
        self._write("b\n")

    def tried(self, number: int) -> None:
        self._write(f"t {number}\n")

    def told(self, outcomes: Iterable[Confirmed | Failed]) -> None:
        """Note the outcomes of several messages at once."""
        lines = [
            f"c {one.number} {one.again:d}\n" if isinstance(one, Confirmed) else f"f {one.number} {one.unknown:d}\n"
            for one in outcomes
        ]
        self._write("".join(lines))

    def received(self, link: str, number: int, *, redelivered: bool, intact: bool) -> None:
        self._write(f"r {link} {number} {redelivered:d} {intact:d}\n")


def sent(path: Path) -> Iterator[Tried | Confirmed | Failed]:
    """Yield a sender's notes."""
    for kind, *rest in _lines(path):
        if kind == "t":
            yield Tried(int(rest[0]))
        elif kind == "c":
            yield Confirmed(int(rest[0]), rest[1] == "1")
        else:
            yield Failed(int(rest[0]), rest[1] == "1")


def received(path: Path, link: str) -> Iterator[Began | Received]:
    """Yield a receiver's notes about one link."""
    for kind, *rest in _lines(path):
        if kind == "b":
            yield Began()
        elif rest[0] == link:
            yield Received(int(rest[1]), rest[2] == "1", rest[3] == "1")


def strangers(path: Path, links: Iterable[str]) -> int:
    """Return the number of messages that a receiver got over no known link."""
    known = set(links)
    return sum(kind == "r" and rest[0] not in known for kind, *rest in _lines(path))


def left(path: Path) -> tuple[list[int], int]:
    """Return what a sender's successor has to send first, in order, and the first number that was never tried."""
    unsettled: dict[int, None] = {}
    following = 0
    for note in sent(path):
        if isinstance(note, Tried):
            unsettled[note.number] = None
            following = max(following, note.number + 1)
        else:
            unsettled.pop(note.number, None)
    return sorted(unsettled), following


def _lines(path: Path) -> Iterator[list[str]]:
    if not path.exists():
        return
    with path.open() as stream:
        for line in stream:
            yield line.split()
