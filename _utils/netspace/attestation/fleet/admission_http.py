"""HTTP service of the master for minions whose keys are pending (:mod:`admission`), and the minions' requests to it.

There is no TLS: no message is secret, and none is trusted because of its sender's address. Signatures and the TPM's
statements prove the content. Everybody who reaches the port may send requests. Sizes, times and the number of threads
are limited, and the service reads a message of more than a few KiB only in an open session.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import threading
import time
import urllib.parse
from http import HTTPStatus
from typing import Any

from netspace import strict_json
from netspace.attestation.fleet.admission import Desk, NotNow
from netspace.errors import NetspaceError

PORT = 4507
OPEN, STEP = "/v1/open", "/v1/step/"
MAX_OPEN = 8 * 1024
MAX_STEP = 8 * 1024 * 1024
"""The largest answer: a quote with the logs of a boot, in base64."""
MAX_REPLY = 256 * 1024
THREADS = 16
PATIENCE = 60.0
"""Seconds for a whole request, and for the answer to one."""
LONGEST = 180.0
"""Seconds after which a connection is cut, whatever it does."""
CHUNK = 64 * 1024


class Service(http.server.ThreadingHTTPServer):
    """HTTP server for one :class:`~netspace.attestation.fleet.admission.Desk`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], desk: Desk) -> None:
        self.desk = desk
        self._room = threading.BoundedSemaphore(THREADS)
        self.large = threading.Lock()  # one large message at a time, because parsing takes much memory
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread. If all threads are busy, close it, because it might wait for ever."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        timer = threading.Timer(LONGEST, _cut, (request,))  # no peer may hold a thread for ever
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a peer that disconnects or sends an invalid request isn't an error of the service."""


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.0"  # one request for each connection
    timeout = 10.0
    server_version, sys_version = "netspace", ""

    def do_POST(self) -> None:
        """Handle one message of a minion."""
        began = time.monotonic()
        desk = self.server.desk
        if self.path == OPEN:
            most, session = MAX_OPEN, ""
        elif self.path.startswith(STEP) and desk.known(self.path.removeprefix(STEP)):
            most, session = MAX_STEP, self.path.removeprefix(STEP)
        else:
            self._reply(HTTPStatus.NOT_FOUND, {"refused": "there is no such session; begin again"})
            return
        try:
            body = self._body(most, began + PATIENCE)
            with self.server.large if len(body) > MAX_OPEN else contextlib.nullcontext():
                data = strict_json.loads(body)
                found = desk.step(session, data) if session else desk.open(data)
        except NotNow as err:
            self._reply(HTTPStatus.TOO_MANY_REQUESTS, {"refused": str(err)})
        except (NetspaceError, ValueError) as err:
            self._reply(HTTPStatus.FORBIDDEN, {"refused": str(err)[:1000]})
        else:
            self._reply(HTTPStatus.OK, found)

    def _body(self, most: int, until: float) -> bytes:
        """Return the body of the request.

        :raises NetspaceError: when the body is too long, or arrives too slowly.
        """
        given = self.headers.get("Content-Length", "")
        if not given.isascii() or not given.isdigit() or len(given) > 9 or int(given) > most:
            raise NetspaceError(f"expected a Content-Length of up to {most}")
        left, parts = int(given), []
        while left:
            if time.monotonic() > until:
                raise NetspaceError("the message came too slowly")
            part = self.rfile.read1(min(left, CHUNK))
            if not part:
                raise NetspaceError("the message ended early")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _reply(self, status: HTTPStatus, data: dict[str, Any]) -> None:
        raw = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing, because anybody could fill the log. The desk reports the verdicts."""


def post(url: str, path: str, data: Any) -> dict[str, Any]:
    """Send one message to a master's service, and return the reply.

    :param url: ``http://<address>:<port>``.
    :raises NotNow: when the master is busy; the minion may ask again later.
    :raises NetspaceError: when the service can't be reached, or its reply isn't a mapping.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise NetspaceError(f"{url!r:.200}: expected http://<address>:<port> of the master's service")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or PORT, timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps(data), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        raw = answer.read(MAX_REPLY + 1)
        found = strict_json.loads(raw) if len(raw) <= MAX_REPLY else None
    except (OSError, ValueError, http.client.HTTPException) as err:
        raise NetspaceError(f"{url}: the master's service can't be asked: {err}") from err
    finally:
        connection.close()
    if not isinstance(found, dict):
        raise NetspaceError(f"{url}: the reply isn't a mapping; is this the master's service?")
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        raise NotNow(str(found.get("refused"))[:1000])
    return found
