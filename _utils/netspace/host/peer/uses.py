"""Record of the requests to the host: lines in the peer's log, and counts for ``netspace.explain``.

Both are bounded: an environment causes at most :data:`LINES` lines a minute, and only known verbs and codes are
counted. The peer writes the counts as an ordinary user, so a reader treats them as unproven.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Annotated

import msgspec

from netspace.link.host_peer import OWN

LINES = 30
"""The most lines of one environment in a minute."""
MINUTE = 60.0
FILE = "uses.json"
MOST = 16 * 1024 * 1024


What = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[a-z?][a-z0-9_ -]*$(?!\n)")]
"""A text that :meth:`Uses.note` counts. A peer that was taken over could write others, for an operator's terminal."""


class Use(msgspec.Struct):
    """Count of requests of one kind with one result.

    :param times: the number of requests.
    :param last: when the last one came, in seconds since 1970.
    """

    times: int = 0
    last: float = 0.0


class Uses:
    """Counts of requests: for each environment, one count per text that was passed to :meth:`note`."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Use]] = {}
        self.changed = False
        self._said: dict[str, tuple[float, int]] = {}

    def note(self, name: str, what: str, now: float) -> bool:
        """Count one request, and log it; return whether it was logged.

        :param what: ``<verb>``; ``<verb> <code>`` if the request was refused; or why it couldn't be answered.
        """
        use = self.counts.setdefault(name, {}).setdefault(what, Use())
        use.times += 1
        use.last = now
        self.changed = True
        since, lines = self._said.get(name, (now, 0))
        if not 0 <= now - since < MINUTE:
            if lines > LINES:
                self._say(f"{name}: {lines - LINES} more requests")
            since, lines = now, 0
        self._said[name] = (since, lines + 1)
        if lines >= LINES:
            return False
        self._say(f"{name}: {what}")
        return True

    def forget(self, names: set[str]) -> None:
        """Delete the counts of all environments but *names*."""
        for name in self.counts.keys() - names:
            del self.counts[name]
            self._said.pop(name, None)

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(f"netspace peer: {text}\n")
        sys.stderr.flush()

    def load(self) -> None:
        """Continue the counts of an earlier process; a damaged file counts as empty."""
        self.counts = read(Path(OWN))

    def save(self) -> None:
        """Write the counts, if they have changed."""
        if not self.changed:
            return
        aside = f"{OWN}/.{FILE}.new"
        with open(aside, "wb") as stream:
            stream.write(msgspec.json.encode(self.counts))
        os.rename(aside, f"{OWN}/{FILE}")
        self.changed = False


_COUNTS = dict[str, Annotated[dict[What, Use], msgspec.Meta(max_length=64)]]


def read(folder: Path) -> dict[str, dict[str, Use]]:
    """Return the counts by environment and text; empty if the file is missing or damaged."""
    try:
        fd = os.open(folder / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return {}
            return msgspec.json.decode(stream.read(MOST), type=_COUNTS)
    except (OSError, ValueError, RecursionError):
        return {}
