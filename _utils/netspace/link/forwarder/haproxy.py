"""Queries to haproxy's master process over its socket: which workers exist, and whether one answers.

Even if haproxy's process exists, it may forward nothing, because a signal has stopped it or because it has no worker.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

from netspace.errors import NetspaceError
from netspace.layout import Layout

SILENT_SECONDS, DEAD_SECONDS = 5.0, 15.0
"""Seconds to wait for an answer before haproxy is reported as silent, and before it is restarted."""
MOST = 16 * 1024**2
"""Bytes of an answer: a worker lists some 300 for each of at most 9,000 sessions."""
ASKED_SECONDS = 2.0
"""Seconds to wait for an answer of a worker that starts, before it is asked again."""
START_SECONDS = 2.0
"""Seconds to wait for the socket and the worker of a haproxy that starts."""


def socket_path(layout: Layout) -> Path:
    return layout.run / "forwarder/master.sock"


def ask(layout: Layout, command: str, seconds: float = 30.0) -> str:
    """Send one command to haproxy's master and return its answer.

    https://docs.haproxy.org/3.0/management.html#9.4

    :raises NetspaceError: haproxy didn't answer within *seconds*, or answered with more than ``MOST`` bytes.
    """
    until, answer = time.monotonic() + seconds, bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        stream.settimeout(seconds)
        try:
            stream.connect(str(socket_path(layout)))
            stream.sendall(command.encode() + b"\n")
            stream.shutdown(socket.SHUT_WR)
            while part := stream.recv(65536):
                answer += part
                if len(answer) > MOST:
                    raise OSError(f"more than {MOST} bytes")
                # The time left for the whole answer: a compromised haproxy must not delay root byte by byte.
                stream.settimeout(max(until - time.monotonic(), 0.001))
        except OSError as err:
            raise NetspaceError(f"the forwarder doesn't answer on {socket_path(layout)}: {err}") from err
    return answer.decode(errors="replace")


def silent(layout: Layout, seconds: float | None = None) -> str:
    """Return why haproxy, whose process runs, forwards nothing; empty if a worker answers.

    The question goes to a worker through the master process, not through an environment's port: a program that
    overloads the port in its own environment must not make the forwarder look dead.

    A haproxy that is starting has no socket and no worker for a moment, so this function waits up to ``START_SECONDS``
    for them.

    :param seconds: the time for each answer; None: ``SILENT_SECONDS``.
    """
    patience = SILENT_SECONDS if seconds is None else seconds
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            for pid in workers(layout, patience):
                if "Pid:" in ask(layout, f"@!{pid} show info", patience):
                    return ""
            why = "it has no worker that answers"
        except NetspaceError as err:
            why = str(err)
        if time.monotonic() >= until:
            return why
        time.sleep(0.05)


def workers(layout: Layout, seconds: float) -> list[str]:
    """Return the process ids of the current workers. Old workers, which only finish their connections, are left out."""
    listed = ask(layout, "show proc", seconds).partition("# workers")[2].partition("#")[0]
    return [words[0] for words in map(str.split, listed.splitlines()) if words[1:2] == ["worker"]]


def serves(layout: Layout, seconds: float, ended: Callable[[], bool] = lambda: False) -> bool:
    """Wait until haproxy has a worker that answers; return whether there is one.

    haproxy 3.2 lists a worker before the worker listens. A question sent before that is never answered, so it is
    repeated. The wait ends after *seconds*, or when *ended* returns True.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(NetspaceError):
            if any("Pid:" in ask(layout, f"@!{pid} show info", ASKED_SECONDS) for pid in workers(layout, 30.0)):
                return True
        if ended():
            break
        time.sleep(0.05)
    return False


def end(layout: Layout, ways: Collection[str]) -> None:
    """End the connections over removed routes, in all workers.

    They are ended one by one, because an old worker refuses to end all sessions of a server at once ("Proxy is
    disabled"). https://docs.haproxy.org/3.0/management.html#9.3-show%20sess

    :param ways: the routes' backends, ``to:<environment>:<host>``.
    """
    if not ways:
        return
    backends = {f"be={way}" for way in ways}
    # Old workers would still route a connection that has no backend yet by the old rules.
    undecided = {f"fe=environment:{way.split(':')[1]}" for way in ways}
    # Each line: a process id and the kind of the process.
    listed = [line.split() for line in ask(layout, "show proc").splitlines() if line[:1].isdigit()]
    for worker in (line[0] for line in listed if line[1] == "worker"):
        for line in ask(layout, f"@!{worker} show sess").splitlines():
            told = set(line.split())
            if backends & told or (undecided & told and "be=<NONE>" in told):
                ask(layout, f"@!{worker} shutdown session {line.partition(':')[0]}")
