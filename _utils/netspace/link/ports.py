"""The port of each environment for the broker: held by root until the forwarder listens there.

Inside its network namespace a program may take any port. haproxy refuses its whole configuration if one port is taken,
so one program could keep it from starting, for all environments. So the starter of the forwarder, and whoever changes
it, first holds all ports by sockets that are bound and don't listen. With SO_REUSEPORT haproxy, which binds as root,
can share them, and no other user can: socket(7). They are without SO_REUSEADDR, by which anybody could share a port on
which nobody listens. An environment whose port can't be held is left out, and named.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from netspace import sockets, threads

LOOPBACK = "127.0.0.1"


class Held:
    """Ports that are held as long as this is open.

    :ivar refused: by environment, why its port can't be held.
    """

    def __init__(self, wanted: Mapping[str, tuple[Path, int]]) -> None:
        """Hold the ports *wanted*: each environment's namespace and port."""
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
                    continue  # the forwarder, whose own connections keep the port from being bound: it holds it
                self.refused[name] = f"a program in it has taken {LOOPBACK}:{port} ({err.strerror})"
                continue
            self._sockets.append(one)


def root_listens(port: int) -> bool:
    """Whether a socket that root made listens at *port* of the calling thread's loopback.

    Then nobody else can. No program in an environment has the user id 0 of the host.
    """
    return any((one.address, one.user) == (LOOPBACK, 0) for one in sockets.listeners("tcp", {port}))


def told(refused: Mapping[str, str]) -> str:
    """The message to an operator about environments that are left out."""
    each = "; ".join(f"{name}: {why}" for name, why in sorted(refused.items()))
    return f"left out by the forwarder: {each}; end that program, and apply again"
