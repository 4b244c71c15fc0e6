"""A client of RabbitMQ's HTTP management API: what ``kind`` needs of it, and no more.

One kept connection, bounded answers and times. Of a cluster's nodes the first that answers is asked.
Credentials go into a header, never into a URL, a log or an error's text.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from netspace.errors import NetspaceError
from netspace.link.names import shown

if TYPE_CHECKING:
    import http.client

MAX_ANSWER = 256 * 1024 * 1024
DEEPEST = 64
"""Levels that are read of a too deeply nested answer: the broker's own data has fewer than ten."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
"""A string, or a bracket that begins or ends a level. RFC 8259 sections 2 and 7."""


class UnreachableError(NetspaceError):
    """The broker's management API gives no answer."""


class TooLargeError(NetspaceError):
    """The management API's answer is larger than any that is taken."""


class RefusedError(NetspaceError):
    """The management API answered, but not with what was asked for."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Login:
    """Name and password of an account that may manage the broker."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class _Place:
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
    """The management API at the first of *urls* that answers (``http://`` or ``https://``).

    :param urls: of one node, or of the nodes of one cluster.
    :param ca: PEM file of the certificates that ``https`` is verified by; absent: the system's.
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
        """The node that is asked."""
        return str(self._places[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, *path: str, query: str = "") -> Any:
        """GET ``/api/<path>``; None where there is no such thing.

        :raises UnreachableError: no answer.
        :raises TooLargeError: more than ``MAX_ANSWER`` bytes.
        :raises RefusedError: an answer other than 2xx or 404.
        """
        return self._call("GET", path, query=query)

    def post(self, *path: str, body: Any, timeout: float | None = None) -> Any:
        """POST *body* as JSON; raises as :meth:`get` does."""
        return self._call("POST", path, body=body, timeout=timeout)

    def delete(self, *path: str, timeout: float | None = None) -> bool:
        """DELETE; whether there was such a thing. Raises as :meth:`get` does."""
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
                    # The server closes idle connections; all calls made here may be repeated.
                    self.close()
                    status, raw = self._exchange(method, url, data, timeout)
                break
            except (OSError, http.client.HTTPException) as err:
                self.close()
                failures.append(f"the broker's management API at {self.where} gives no answer: {err}")
                self._places.append(self._places.pop(0))  # the next one, from now on
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
    """Decode JSON; arrays and objects below ``DEEPEST`` levels are left out where the whole can't be decoded.

    Any sender may make the broker answer with thousands of levels: the answer includes a message's headers.

    :raises ValueError: when it is no JSON.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        return json.loads(_shallow(raw))


def _shallow(raw: bytes) -> bytes:
    """JSON text with ``null`` in place of each array and object below ``DEEPEST`` levels."""
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
