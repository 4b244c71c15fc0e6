"""Reservation of each environment's port for the broker, until the forwarder listens at it.

A program may take any port inside its network namespace. haproxy refuses its whole configuration if one port is taken,
so a single program could prevent its start for all environments. To avoid this, ``launch`` and ``process.apply`` first
hold all ports with sockets that are bound but don't listen.

The sockets have SO_REUSEPORT: haproxy binds as root, like these sockets, and can share the port; other users can't
(socket(7)). They don't have SO_REUSEADDR, with which any user could share a port on which no socket listens. An
environment whose port can't be held is left out and reported.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from netspace import sockets, threads

LOOPBACK = "127.0.0.1"


class Held:
    """Context manager that holds ports until its end.

    :ivar refused: for each environment whose port can't be held, the reason.
    """

    def __init__(self, wanted: Mapping[str, tuple[Path, int]]) -> None:
        """Hold the port in each network namespace.

        :param wanted: for each environment, its network namespace and the port.
        """
        self.refused: dict[str, str] = {}
        self._sockets: list[socket.socket] = []
        threads.in_thread(lambda: self._hold(wanted))

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        for one in self._sockets:
            one.close()

    def _hold(self, wanted: Mapping[str, tuple[Path, int]]) -> None:
        for name, (namespace, port) in wanted.items():
            try:
                threads.enter_network(namespace)
            except OSError as err:
                self.refused[name] = f"its network namespace can't be entered: {err.strerror}"
                continue
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                one.bind((LOOPBACK, port))
            except OSError as err:
                one.close()
                if root_listens(port):
                    continue  # the forwarder has the port; its connections prevent another bind
                self.refused[name] = f"a program in it has taken {LOOPBACK}:{port} ({err.strerror})"
                continue
            self._sockets.append(one)


def root_listens(port: int) -> bool:
    """Return whether a socket of the host's root listens at *port* of loopback in the calling thread's namespace.

    If so, no program of the environment can listen at that port, since none has the host's user id 0.
    """
    return any((one.address, one.user) == (LOOPBACK, 0) for one in sockets.listeners("tcp", {port}))


def told(refused: Mapping[str, str]) -> str:
    """Return the message to the operator about environments that are left out."""
    each = "; ".join(f"{name}: {why}" for name, why in sorted(refused.items()))
    return f"left out by the forwarder: {each}; end that program, and apply again"
