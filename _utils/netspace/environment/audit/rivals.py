"""Three rivals for the same pools: a twin that takes all units that it can get, a neighbour twin, and the host's root.

Each rival is a process of ``exhaust.py``, which reads requests from its standard input. The answers of the two twins
come from inside an environment, so this module accepts only a number and a short text.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from netspace.environment import execute
from netspace.environment.audit import twin
from netspace.environment.builder import Builder
from netspace.environment.container import cgroups
from netspace.environment.record import Record
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.text import harmless, printable

_PATIENCE = 60.0  # seconds for one answer
_LINE = 4096  # the most bytes of an answer
_FOLDER = "/tmp"  # noqa: S108 (a twin's own)
GONE = "killed with all its processes"


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The number of units of a pool that a rival took, and the error at which it stopped."""

    taken: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    ended: Annotated[str, msgspec.Meta(max_length=64)]


class Rival:
    """A process of ``exhaust.py`` that answers requests.

    :param begin: starts the process.
    :param finish: ends the process, also if it has ended already.
    """

    def __init__(
        self, begin: Callable[[], subprocess.Popen[bytes]], finish: Callable[[subprocess.Popen[bytes]], object]
    ) -> None:
        self._begin = begin
        self._finish = finish
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, **request: object) -> Answer:
        """Send a request and return the answer, or :data:`GONE` if the process was killed.

        The first request starts the process; so does the first request after the process was killed.

        :raises NetspaceError: when the process can't be started, or its answer is late or malformed.
        """
        if self._process is None:
            self._process = self._begin()
        line = _exchange(self._process, request)
        if not line:
            self.end()
            return Answer(0, GONE)
        return understood(line)

    def restart(self) -> None:
        """End the process, start it again, and wait until it answers."""
        self.end()
        self.ask(echo=True)

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            self._finish(process)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def understood(line: bytes) -> Answer:
    """Parse an answer: a line that comes from inside an environment, so it isn't trusted.

    :raises NetspaceError: when the line is malformed.
    """
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError as err:
        raise NetspaceError(f"the answer of a twin can't be understood: {harmless(str(err))}") from err
    return Answer(answer.taken, printable(answer.ended))


def _exchange(process: subprocess.Popen[bytes], request: Mapping[str, object]) -> bytes:
    """Send a request and return the line that answers it; empty if the program has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
    except BrokenPipeError:
        return b""
    return _line(process.stdout.fileno())


def _line(fd: int) -> bytes:
    """Read one line; return empty bytes at the end of the stream."""
    found = b""
    deadline = time.monotonic() + _PATIENCE
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise NetspaceError(f"a twin doesn't answer within {_PATIENCE:.0f} seconds")
            part = os.read(fd, _LINE)
            if not part:
                return b""
            found += part
            if len(found) > _LINE:
                raise NetspaceError("the answer of a twin is too long")
    return found


@dataclass(frozen=True)
class Rivals:
    """The three rivals, and functions for measurements.

    :param enter: runs a trivial program in the neighbour.
    :param memory: returns the bytes of memory that the kernel charges to the attacker.
    """

    attacker: Rival
    neighbour: Rival
    root: Rival
    enter: Callable[[], object]
    memory: Callable[[], int]


def _end_on_host(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


@contextlib.contextmanager
def rivals(making: Builder, original: Record, twins: tuple[str, str]) -> Iterator[Rivals]:
    """Make the two twins and yield the three rivals; end all three afterwards.

    The caller has written the twins' note (``twin.note``), and made their network namespaces.

    :raises NetspaceError: when a twin can't be made.
    """
    layout, used = making.layout, original.runtime
    interpreter = twin.prepare(making, original, dict.fromkeys(twins, twin.Role("exhaust.py", (_FOLDER,))))
    folder = twin.kit_folder(layout, twins[0])
    scratch = folder / "host"
    scratch.mkdir()

    def of_twin(name: str) -> Rival:
        def begin() -> subprocess.Popen[bytes]:
            process = twin.start(layout, name, used)
            if not _exchange(process, {"echo": True}):
                raise twin.failed(layout, name, process)
            return process

        return Rival(begin, lambda process: twin.end(layout, name, process))

    def on_host() -> subprocess.Popen[bytes]:
        command = interpreter.command(str(folder), str(folder / "exhaust.py"), str(scratch))
        variables = dict(entry.split("=", 1) for entry in interpreter.variables(str(folder)))
        return subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    hierarchies = cgroups.Hierarchies(mounts.table(), making.controllers)
    group = cgroups.Group(twin.cgroup(layout, twins[0]), hierarchies)
    bare = msgspec.structs.replace(original, spec=msgspec.structs.replace(original.spec, env={}))
    nothing = [interpreter.start[0].replace("{}", twin.INSIDE), "--version"]

    def enter() -> object:
        return execute.enter(layout, twins[1], bare, nothing, timeout=30)

    there = (of_twin(twins[0]), of_twin(twins[1]), Rival(on_host, _end_on_host))
    try:
        yield Rivals(*there, enter, group.used)
    finally:
        for rival in there:
            rival.end()
