"""haproxy's master, asked over its socket: which workers there are, and whether one answers.

Its process may be there and carry nothing: stopped by a signal, or without a worker.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from netspace.errors import NetspaceError
from netspace.layout import Layout

SILENT_SECONDS, DEAD_SECONDS = 5.0, 15.0
"""Seconds for an answer until it is told that there is none, and until haproxy is restarted for that."""


def socket_path(layout: Layout) -> Path:
    return layout.run / "forwarder/master.sock"


def ask(layout: Layout, command: str, seconds: float = 30.0) -> str:
    """Send one command to haproxy's master and return its answer.

    https://docs.haproxy.org/3.0/management.html#9.4

    :raises NetspaceError: when there is no answer within *seconds*.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        stream.settimeout(seconds)
        try:
            stream.connect(str(socket_path(layout)))
            stream.sendall(command.encode() + b"\n")
            stream.shutdown(socket.SHUT_WR)
            parts = []
            while part := stream.recv(65536):
                parts.append(part)
        except OSError as err:
            raise NetspaceError(f"the forwarder doesn't answer on {socket_path(layout)}: {err}") from err
    return b"".join(parts).decode(errors="replace")


def silent(layout: Layout, seconds: float | None = None) -> str:
    """Return why haproxy, whose process runs, may carry nothing; empty where its worker answers.

    The worker is asked by its master, and not through an environment's port: whoever fills the port of an environment
    of his own must not make the forwarder look dead.

    :param seconds: for each of its answers; None: ``SILENT_SECONDS``.
    """
    patience = SILENT_SECONDS if seconds is None else seconds
    try:
        for pid in workers(layout, patience):
            if "Pid:" in ask(layout, f"@!{pid} show info", patience):
                return ""
    except NetspaceError as err:
        return str(err)
    return "it has no worker that answers"


def workers(layout: Layout, seconds: float) -> list[str]:
    """Return the processes that serve now, without those that only end their former connections."""
    listed = ask(layout, "show proc", seconds).partition("# workers")[2].partition("#")[0]
    return [words[0] for words in map(str.split, listed.splitlines()) if words[1:2] == ["worker"]]


def serves(layout: Layout, seconds: float, ended: Callable[[], bool] = lambda: False) -> bool:
    """Wait until haproxy serves. Return whether it does after *seconds*, or once it has *ended*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(NetspaceError):
            if workers(layout, 30.0):
                return True
        if ended():
            break
        time.sleep(0.05)
    return False
