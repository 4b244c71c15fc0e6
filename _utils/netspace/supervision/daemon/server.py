"""The daemon's socket, which only root may use: it receives requests and sends answers.

The daemon answers a request when everything in the request is done. ``protocol`` defines the messages.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable

from netspace.errors import NetspaceError
from netspace.supervision import definitions
from netspace.supervision.daemon import protocol
from netspace.supervision.daemon.ending import Stopper
from netspace.supervision.daemon.log_rotation import Rotation
from netspace.supervision.daemon.loop import Loop, Timer
from netspace.supervision.daemon.start import Starter, with_log
from netspace.supervision.daemon.units import Units

REQUEST_TIMEOUT = 10.0  # seconds for a client to send its request
CONNECTIONS = 32

_REQUEST = ""  # no service's name: the request itself, while it is being served


class Client:
    """A connection with one request. The daemon answers when everything in the request is done."""

    def __init__(self, connection: socket.socket, changed: Callable[[Client], None]) -> None:
        self._changed = changed
        self.connection = connection
        self.received = bytearray()
        self.pending: set[str] = set()
        self.errors: dict[str, str] = {}
        self.remove: tuple[str, ...] = ()
        self.timer: Timer | None = None
        self.special = b""  # an answer of another form than the usual one
        self.answer = b""

    def done(self, name: str, error: str) -> None:
        """Note that the request for *name* is done, or failed with *error*."""
        self.pending.discard(name)
        if error:
            self.errors[name] = error
        self._changed(self)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Server:
    """The socket and its clients.

    :param version: the version of the library that the daemon runs.
    """

    def __init__(
        self, units: Units, loop: Loop, starting: Starter, ending: Stopper, rotation: Rotation, version: str
    ) -> None:
        self.units = units
        self.loop = loop
        self.starting = starting
        self.ending = ending
        self.rotation = rotation
        self.version = version
        self.clients: set[Client] = set()
        self.renewing = False  # a client asked to reload the library

    def listen(self, path: str) -> socket.socket:
        """Listen on a socket that only root may use; return the socket."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(CONNECTIONS)
        self.loop.watch(listener.fileno(), lambda _: self._accept(listener))
        return listener

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", credentials)[1]
        if uid != 0 or len(self.clients) >= CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection, self._answer_if_done)
        client.timer = self.loop.after(REQUEST_TIMEOUT, lambda: self._drop(client))
        self.clients.add(client)
        self.loop.watch(connection.fileno(), lambda _: self._receive(client))

    def _receive(self, client: Client) -> None:
        try:
            chunk = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.received += chunk
        if len(client.received) > protocol.LARGEST:
            self._drop(client)
        elif not chunk:
            client.cancel()
            self.loop.unwatch(client.connection.fileno())
            try:
                request = protocol.parse_request(bytes(client.received))
            except ValueError as err:
                self.units.say(f"socket: not a valid request: {err}")
                self._drop(client)
                return
            if request.version in ("", self.version):
                # A service that stops at once must not look like the last one: the others come after it.
                client.pending.add(_REQUEST)
                self._serve(client, request)
                client.pending.discard(_REQUEST)
            self._answer_if_done(client)

    def _serve(self, client: Client, request: protocol.Request) -> None:
        if request.do == "start":
            self.starting.start(request.names, client)
        elif request.do == "resume":
            # A service with a trace was started since the boot: it runs, or has ended for good.
            known = set(definitions.defined(self.units.layout)) - set(definitions.traced(self.units.layout))
            self.starting.start(sorted(definitions.desired(self.units.layout) & known))
        elif request.do == "look":
            client.special = self._look()
        elif request.do == "reload":
            self._reload(client, request.names)
        elif request.do == "renew":
            self.renewing = True
        elif request.do in ("stop", "remove"):
            client.remove = request.names if request.do == "remove" else ()
            self.ending.stop(request.names, client)

    def _look(self) -> bytes:
        """Return the answer with the running services. Their traces have the same values."""
        units = [self.units.by_name[name] for name in self.units.active]
        running = [unit for unit in units if unit.phase == "running" and unit.pid > 0]
        frozen = self.starting.children.frozen(unit.pid for unit in running)
        return protocol.render_look(
            {
                unit.name: (unit.pid, unit.since, unit.restarts, unit.exit, unit.oom_kills, unit.pid in frozen)
                for unit in running
            }
        )

    def _reload(self, client: Client, names: Iterable[str]) -> None:
        for name in names:
            unit = self.units.find(name)
            if unit is None or unit.phase != "running" or unit.service is None:
                self.units.fail(client, name, f"the service {name} does not run")
                continue
            if not unit.service.reload:
                self.units.fail(client, name, f"the service {name} can't reload its configuration; restart it")
                continue
            client.pending.add(name)
            argv = tuple(part.replace("{pid}", str(unit.pid)) for part in unit.service.reload)

            def done(error: str, name: str = name) -> None:
                client.done(name, error)

            self.ending.help(unit, argv, done)

    def _answer_if_done(self, client: Client) -> None:
        if client.pending or client.answer or client not in self.clients:
            return
        for name in client.remove:
            self._forget(name)
        client.answer = client.special or protocol.render(protocol.Answer(self.version, client.errors))
        client.timer = self.loop.after(REQUEST_TIMEOUT, lambda: self._drop(client))
        self.loop.watch(client.connection.fileno(), lambda _: self._send(client), select.EPOLLOUT)

    def _send(self, client: Client) -> None:
        try:
            sent = client.connection.send(client.answer)
        except BlockingIOError:
            return
        except OSError:
            sent = len(client.answer)
        client.answer = client.answer[sent:]
        if not client.answer:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        client.cancel()
        self.loop.unwatch(client.connection.fileno())
        self.clients.discard(client)
        client.connection.close()

    def _forget(self, name: str) -> None:
        """Remove every file of a stopped service."""
        unit = self.units.find(name)
        if unit is not None and unit.phase != "idle":
            return  # another client has requested its start meanwhile
        self.units.by_name.pop(name, None)
        service = None
        with contextlib.suppress(NetspaceError):
            service = definitions.read(self.units.layout, name)
        if service is not None:
            log = with_log(self.units.layout, service).log
            assert log is not None
            self.rotation.remove(log)
        definitions.remove_trace(self.units.layout, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(definitions.folder(self.units.layout) / f"{name}.json")
