"""Client of RabbitMQ's HTTP management API, with only the operations that links need.

It keeps one connection, and bounds the size of answers and the time to wait for them. Of a cluster, it uses the first
node that answers. Credentials are sent in a header, and never put into a URL, a log or an error's text.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from netspace.errors import NetspaceError
from netspace.link.topology.names import shown

if TYPE_CHECKING:
    import http.client

MAX_ANSWER = 256 * 1024 * 1024
DEEPEST = 64
"""Levels of a too deeply nested answer that are decoded. The broker's own data has fewer than ten."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
"""A string, or a bracket that begins or ends a level. RFC 8259 sections 2 and 7."""


class UnreachableError(NetspaceError):
    """Error: the broker's management API gives no answer."""


class TooLargeError(NetspaceError):
    """Error: an answer of the management API is larger than ``MAX_ANSWER``."""


class RefusedError(NetspaceError):
    """Error: the management API answered with an error status, or not with JSON."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class Login(msgspec.Struct, frozen=True):
    """Name and password of an account that may manage the broker."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Login(username={self.username!r})"


class _Place(msgspec.Struct, frozen=True):
    """The address of a node's management API."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _Place:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NetspaceError(f"management URL {url!r}: expected http(s)://host[:port]")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


class Management:
    """Client of the management API at the first of *urls* (``http://`` or ``https://``) that answers.

    :param urls: URLs of one node, or of the nodes of one cluster.
    :param login: the account to use.
    :param timeout: seconds to wait for an answer.
    :param ca: PEM file of the trusted certificates for ``https``; None: the system's.
    """

    def __init__(self, urls: Sequence[str], login: Login, timeout: float = 10.0, ca: str | None = None) -> None:
        self._places = [_Place.of(url) for url in urls]
        self._ca = ca
        self._timeout = timeout
        token = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Management:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def where(self) -> str:
        """The address of the node in use."""
        return str(self._places[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, *path: str, query: str = "") -> Any:
        """Return the answer to GET ``/api/<path>``; None if the resource doesn't exist.

        :raises UnreachableError: there is no answer.
        :raises TooLargeError: the answer has more than ``MAX_ANSWER`` bytes.
        :raises RefusedError: the answer's status is neither 2xx nor 404.
        """
        return self._call("GET", path, query=query)

    def post(self, *path: str, body: Any, timeout: float | None = None) -> Any:
        """Send a POST with *body* as JSON, and return the answer. The errors are those of :meth:`get`."""
        return self._call("POST", path, body=body, timeout=timeout)

    def delete(self, *path: str, timeout: float | None = None) -> bool:
        """Send a DELETE; return whether the resource existed. The errors are those of :meth:`get`."""
        return self._call("DELETE", path, timeout=timeout) is not None

    def _call(
        self, method: str, path: tuple[str, ...], query: str = "", body: Any = None, timeout: float | None = None
    ) -> Any:
        import http.client

        url = f"/api/{'/'.join(quote(part, safe='') for part in path)}{'?' + query if query else ''}"
        data = None if body is None else json.dumps(body).encode()
        failures: list[str] = []
        while True:
            kept = self._connection is not None
            try:
                try:
                    status, raw = self._exchange(method, url, data, timeout)
                except (ConnectionError, http.client.BadStatusLine, http.client.CannotSendRequest):
                    if not kept:
                        raise
                    # The server closes idle connections. All calls of this library may be repeated.
                    self.close()
                    status, raw = self._exchange(method, url, data, timeout)
                break
            except (OSError, http.client.HTTPException) as err:
                self.close()
                failures.append(f"the broker's management API at {self.where} gives no answer: {err}")
                self._places.append(self._places.pop(0))  # continue with the next node
                if len(failures) == len(self._places):
                    raise UnreachableError("; ".join(failures)) from err
        if status == 404:
            return None
        if not 200 <= status < 300:
            asked = f"{method} /api/{shown('/'.join(path))}"
            text = f"the broker's management API at {self.where} answered {asked} with {status}{_reason(status, raw)}"
            raise RefusedError(text, status)
        try:
            return decoded(raw) if raw else {}
        except (ValueError, RecursionError) as err:
            raise RefusedError(f"{self.where} answered with something else than JSON; is it RabbitMQ?", status) from err

    def _exchange(self, method: str, url: str, data: bytes | None, timeout: float | None) -> tuple[int, bytes]:
        import http.client

        place = self._places[0]
        if self._connection is None:
            if place.scheme == "https":
                import ssl

                self._connection = http.client.HTTPSConnection(
                    place.host, place.port, timeout=self._timeout, context=ssl.create_default_context(cafile=self._ca)
                )
            else:
                self._connection = http.client.HTTPConnection(place.host, place.port, timeout=self._timeout)
            self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.settimeout(timeout or self._timeout)
        self._connection.request(method, place.path + url, body=data, headers=self._headers)
        answer = self._connection.getresponse()
        raw = answer.read(MAX_ANSWER + 1)
        if len(raw) > MAX_ANSWER:
            self.close()
            raise TooLargeError(f"the management API at {self.where} answers with more than {MAX_ANSWER} bytes")
        if answer.will_close:
            self.close()
        return answer.status, raw


def decoded(raw: bytes) -> Any:
    """Decode JSON. If it is nested too deep for that, arrays and objects below ``DEEPEST`` levels become ``null``.

    Answers include headers of messages, which a sender may nest thousands of levels deep.

    :raises ValueError: *raw* isn't JSON.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        return json.loads(_shallow(raw))


def _shallow(raw: bytes) -> bytes:
    """Return the JSON text with each array and object below ``DEEPEST`` levels replaced by ``null``."""
    kept: list[bytes] = []
    depth = begin = 0
    for found in _TOKEN.finditer(raw):
        token = found[0]
        if token in b"[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept += [raw[begin : found.start()], b"null"]
        elif token in b"]}":
            depth -= 1
            if depth == DEEPEST:
                begin = found.end()
    return b"".join([*kept, raw[begin:] if depth <= DEEPEST else b""])


def _reason(status: int, raw: bytes) -> str:
    if status in (401, 403):
        return ": the management credentials aren't accepted (tag administrator needed)"
    try:
        value = decoded(raw)
        text = str(value.get("reason", ""))
    except (ValueError, AttributeError, RecursionError):
        text = raw[:200].decode(errors="replace")
    return f": {shown(text)[:400]}" if text else ""
