"""A terminal of 80 columns in a machine, at which an operator types lines, and what is wrong with what he reads there.

Programs see a real terminal (pty(7)), so they show what they show to people: tables, colours, progress.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.hosts.systemd_host import SystemdHost

COLUMNS, ROWS = 80, 50
PATIENCE = 1500.0  # seconds for one line
# Colours, titles, character sets, and cursor movements that a terminal doesn't show.
_INVISIBLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|\x1b[=>78]|[\x0e\x0f]")
_VARIABLES = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
}
# Numbers that a reader has to compute with: a time in seconds since 1970, a size in bytes, hours in seconds.
_EPOCH = re.compile(r"(?<![\w.:/-])1[5-9]\d{8}(\.\d+)?(?![\w-])")
_LARGE = re.compile(r"(?<![\w.:/-])\d{6,}(\.\d+)?(?![\w-])")
_SECONDS = re.compile(r"(?<![\w.:/-])\d{4,}(\.\d+)? ?(s|sec|seconds)\b")


class Read(NamedTuple):
    """A line that an operator typed, and the answer that he read.

    :param shown: the lines on the terminal, without colours; of a line that was written over, the last text.
    """

    typed: str
    status: int
    seconds: float
    shown: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    @property
    def widest(self) -> int:
        return max(map(_width, self.shown), default=0)


def _width(line: str) -> int:
    """Return the columns that a line takes; wide (East Asian) characters take two, combining ones none."""
    wide = {"F": 2, "W": 2}
    return sum(0 if unicodedata.combining(one) else wide.get(unicodedata.east_asian_width(one), 1) for one in line)


def troubles(read: Read) -> Iterator[str]:
    """Yield the lines that are wider than the terminal, or contain a number that needs a calculator."""
    for line in read.shown:
        if _width(line) > COLUMNS:
            yield f"{_width(line)} columns: {line}"
        if _EPOCH.search(line) or _SECONDS.search(line) or _LARGE.search(line):
            yield f"needs a calculator: {line}"


class Terminal:
    """A terminal in a machine.

    :param log: a file to which everything typed and shown is appended; None: no log.
    """

    def __init__(self, host: SystemdHost, log: Path | None = None) -> None:
        self.host, self.log = host, log

    def type(self, line: str) -> Read:
        """Run a line in the machine's shell as root, in a terminal of its own, and return what is read then.

        :raises AssertionError: the line takes longer than ``PATIENCE``.
        """
        began = time.monotonic()
        controller, terminal = pty.openpty()
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            # setsid --ctty makes the terminal that of the shell, as a log-in does.
            shell = ["setsid", "--ctty", "--wait", "/bin/bash", "-c", line]
            program = subprocess.Popen(
                ["nsenter", "-t", str(self.host.pid), "-a", "--", *shell],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env=_VARIABLES,
                cwd="/",
            )
            os.close(terminal)
            terminal = -1
            content = _all(controller, program, began + PATIENCE)
        finally:
            os.close(controller)
            if terminal >= 0:
                os.close(terminal)
        text = _INVISIBLE.sub("", content.decode(errors="replace")).replace("\r\n", "\n")
        shown = [one.rstrip("\r").rpartition("\r")[2] for one in text.split("\n")]
        read = Read(line, program.wait(), time.monotonic() - began, shown)
        if self.log is not None:
            with self.log.open("a") as stream:
                end = f"[exit {read.status}, {read.seconds:.0f} s, widest {read.widest}]"
                stream.write(f"\n$ {line}\n{read.text}\n{end}\n")
        return read

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine, as with an editor."""
        place = self.host.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(f"\n[edits {path}]\n{text}")


def _all(controller: int, program: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return all that is shown on the terminal until *program* has ended."""
    content = bytearray()
    while True:
        ready, _, _ = select.select([controller], [], [], 0.5)
        if ready:
            try:
                part = os.read(controller, 65536)
            except OSError:  # nobody has the terminal any more
                part = b""
            if not part:
                return bytes(content)
            content += part
        elif program.poll() is not None:  # a service that it started may keep the terminal
            return bytes(content)
        if time.monotonic() > deadline:
            program.kill()
            raise AssertionError(f"not ended in time:\n{content[-3000:].decode(errors='replace')}")
