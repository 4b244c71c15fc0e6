"""YAML language server, as an editor uses it: by LSP over its standard streams, without a network.

``scripts/provision --callers`` installs it (the npm package ``yaml-language-server``).
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".cache/npm/node_modules/.bin/yaml-language-server"
PATIENCE = 120.0
"""Seconds that an answer of the server may take."""
_ERROR = 1


class Mistake(NamedTuple):
    """One error that the editor marks, with the marked text and its line."""

    marked: str
    line: int
    message: str


def program() -> str:
    """Return the path of the server; empty if it isn't installed."""
    return str(INSTALLED) if INSTALLED.exists() else shutil.which("yaml-language-server") or ""


class Editor:
    """An editor with one schema for all of its files."""

    def __init__(self, process: subprocess.Popen[bytes], schema: Path) -> None:
        self._process, self._number = process, 0
        self._settings = {"schemas": {schema.as_uri(): "*"}, "validate": True, "schemaStore": {"enable": False}}
        self._buffer = b""
        asks = {"workspace": {"configuration": True}}
        self._send(id=0, method="initialize", params={"processId": None, "rootUri": None, "capabilities": asks})
        self._until(lambda message: message.get("id") == 0 and "result" in message)
        self._send(method="initialized", params={})

    def mistakes(self, text: str) -> list[Mistake]:
        """Open a file with this text; return the errors that the server finds in it."""
        self._number += 1
        address = f"file:///netspace/{self._number}.yaml"
        opened = {"uri": address, "languageId": "yaml", "version": 1, "text": text}
        self._send(method="textDocument/didOpen", params={"textDocument": opened})
        found = self._until(
            lambda message: (
                message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == address
            )
        )
        lines = text.splitlines()
        told = []
        for one in found["params"]["diagnostics"]:
            start, end = one["range"]["start"], one["range"]["end"]
            line = lines[start["line"]]
            marked = line[start["character"] : end["character"] if end["line"] == start["line"] else None]
            if one["severity"] == _ERROR:
                told.append(Mistake(marked, start["line"], one["message"]))
        return told

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._process.stdin.flush()

    def _until(self, wanted: Any) -> dict[str, Any]:
        """Return the first message that is wanted; answer the server's own requests until then."""
        last = time.monotonic() + PATIENCE
        while True:
            message = self._next(last)
            if wanted(message):
                return message
            if "id" in message and "method" in message:
                asked = message.get("params", {}).get("items", [])
                values = [self._settings if one.get("section") == "yaml" else {} for one in asked]
                self._send(id=message["id"], result=values if asked else None)

    def _next(self, last: float) -> dict[str, Any]:
        while b"\r\n\r\n" not in self._buffer:
            self._fill(last)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        sizes = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        size = int(sizes[0])
        while len(self._buffer) < size:
            self._fill(last)
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        found: dict[str, Any] = json.loads(body)
        return found

    def _fill(self, last: float) -> None:
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], max(last - time.monotonic(), 0))[0]
        assert ready, f"the server said nothing in {PATIENCE:g} s"
        read = self._process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        assert read, "the server has ended"
        self._buffer += read


@contextmanager
def editing(schema: Path) -> Iterator[Editor]:
    """Run the server for files that have this schema."""
    command = [program(), "--stdio"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield Editor(process, schema)
        finally:
            process.kill()
